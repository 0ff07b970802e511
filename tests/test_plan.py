import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import pytest

from darl_jax import config
from darl_jax.planning import topology
from darl_jax.planning.records import training_records
from darl_jax.runtime.chips import CHIPS
from darl_jax.training.optimizers import make_optimizer
from darl_jax.training.state import init_state

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
from darl_jax.config import default_config

def get_config():
    config = default_config(objective="mse")
    config.batch_size, config.total_steps = 64, 2000
    config.model.width, config.model.depth, config.model.num_heads = 32, 2, 4
    config.model.mlp_dim, config.model.patch_size, config.model.dtype = 64, 2, "float32"
    config.data.source, config.data.image_size, config.data.channels = "digits", 8, 1
    config.data.mean, config.data.std = (0.305,), (0.376,)
    return config
"""


def run_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Starts darl_jax.plan as a user does, for a small model of the digits."""
    # Without the settings by which conftest.py has XLA compile faster.
    dropped = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(CONFIG)
        file.flush()
        return subprocess.run(
            [sys.executable, "-m", "darl_jax.plan", f"--config={file.name}", *arguments],
            cwd=REPOSITORY,
            env=environment | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=200,
        )


def small(**changes: object) -> config.TrainConfig:
    names: dict = {}
    exec(CONFIG, names)
    values = names["get_config"]()
    values.update_from_flattened_dict(changes)
    return config.load(values)


def number_of_parameters(of: config.TrainConfig) -> int:
    optimizer = make_optimizer(of.optimizer, 0.0)
    state = jax.eval_shape(
        lambda key: init_state(of.method.init, optimizer, key), jax.random.key(0)
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = run_plan("--topology=h100:8", f"--json={path}")
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.mark.process
def test_every_device_of_a_data_parallel_mesh_holds_all_parameters_and_two_moments(
    data_parallel: tuple[dict, str],
) -> None:
    memory, number = data_parallel[0]["memory"], number_of_parameters(small())
    assert memory["parameters"] == 4 * number
    # Adam's moments and the two step counters of the chain.
    assert memory["optimizer"] == 8 * number + 2 * 4
    assert memory["peak"] > memory["parameters"] + memory["optimizer"] + memory["batch"]


@pytest.mark.process
def test_flops_are_those_of_the_convention_but_for_gradients_that_are_never_formed(
    data_parallel: tuple[dict, str],
) -> None:
    work = data_parallel[0]["work"]
    assert work["model_flops"] == 64 * small().method.flops() / 8
    pixel_gradients = 2 * 15 * 4 * 32 * 64 / 8
    assert work["executed_flops"] == work["model_flops"] - pixel_gradients


@pytest.mark.process
def test_a_data_parallel_step_reduces_every_gradient_once(data_parallel: tuple[dict, str]) -> None:
    plan = data_parallel[0]
    assert {(each["kind"], *each["axes"]) for each in plan["work"]["collectives"]} == {
        ("all-reduce", "data")
    }
    reduced = sum(each["bytes"] for each in plan["work"]["collectives"])
    # Beside the gradients only a few scalars: the loss, its count and the metrics.
    assert 0 <= reduced - plan["memory"]["parameters"] <= 64
    rate = CHIPS["h100"].interconnect.bytes_per_second
    assert plan["times"]["interconnect"] == pytest.approx(2 * 7 / 8 * reduced / rate)
    assert plan["times"]["network"] == 0


@pytest.mark.process
def test_the_run_takes_the_configs_steps_at_the_rooflines_rate(
    data_parallel: tuple[dict, str],
) -> None:
    plan, text = data_parallel
    times, chip = plan["times"], CHIPS["h100"]
    assert times["compute"] == plan["work"]["executed_flops"] / chip.peak_bf16_flops
    assert times["hbm"] == plan["work"]["memory_traffic"] / chip.hbm_bytes_per_second
    parts = [times[name] for name in ("compute", "hbm", "interconnect", "network")]
    assert times["step"] == max(parts) and times["step_without_overlap"] == sum(parts)
    assert plan["examples_per_second"] == 64 / times["step"]
    assert plan["total_steps"] == 2000 and plan["records"] == 1297
    assert plan["hours"] == pytest.approx(2000 * times["step"] / 3600)
    for part in ("compiled by XLA for CPUs", "peak rate is that of bfloat16", "parameters"):
        assert part in text


@pytest.mark.slow
@pytest.mark.process
def test_a_step_that_does_not_fit_ends_with_1_and_one_line_of_advice() -> None:
    done = run_plan("--topology=h100:8", f"--config.batch_size={2**24}")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
    assert "the step needs" in errors[0] and "a chip of h100:8 has" in errors[0]
    assert "config.accumulation_steps" in errors[0]


@pytest.mark.slow
@pytest.mark.process
def test_a_sweep_ranks_the_meshes_that_fit_and_prints_flags_to_paste(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "plan.json"
    done = run_plan("--topology=h100:2", "--sweep", "--compile_top=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    meshes = re.findall(r"^  (\d) x (\d) x 1 +none +64 / 1 ", done.stdout, re.MULTILINE)
    assert sorted(meshes) == [("1", "2"), ("2", "1")]
    best = json.loads(path.read_text())
    assert best["mesh"]["data"] == int(meshes[0][0])
    mesh = " ".join(f"--config.mesh.{axis}={best['mesh'][axis]}" for axis in best["mesh"])
    assert f"Best: {mesh} --config.model.remat=none" in done.stdout


@pytest.mark.parametrize(
    "name",
    ["v9:4x4", "v5e", "v5e:", "h100:8x8", "2xh100:8", "cpu:0", "v5e:4xx4", "V5E:4x4", "0xv5e:4x4"],
)
def test_an_unknown_topology_is_refused_with_the_valid_forms(name: str) -> None:
    with pytest.raises(ValueError, match=r"v5e:16x16|the number of devices") as caught:
        topology.open_topology(name)
    assert name in str(caught.value)


def test_the_number_of_records_is_never_guessed(tfds_dir: str) -> None:
    changes = {"data.source": "tfds", "data.dataset": "imagenet2012", "data.image_size": 224}
    known = small(**changes)
    assert training_records(known, None)[0] == 1_281_167
    assert training_records(small(**changes, **{"data.train_split": "train[:10%]"}), None)[0] == (
        pytest.approx(128_117, abs=1)
    )
    assert training_records(known, 12) == (12, "as --records says")
    # A dataset that is present has the last word, a sample too.
    assert training_records(small(**changes, **{"data.data_dir": tfds_dir}), None)[0] < 1_281_167
    with pytest.raises(ValueError, match="--records=N"):
        training_records(small(**changes | {"data.dataset": "mine"}), None)
    with pytest.raises(ValueError, match="train_split"):
        training_records(small(**changes, **{"data.train_split": "trian"}), None)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("attention", ["auto", "splash"])
def test_a_tpu_slice_is_compiled_for_without_a_tpu(attention: str, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("libtpu")
    path = tmp_path / "plan.json"
    done = run_plan(
        "--topology=2xv5e:2x2",
        "--config.model.dtype=bfloat16",
        f"--config.model.attention={attention}",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["compiler"] == "TPU" and found["devices"] == 8
    assert found["kernels"]["attention"] == {"auto": "xla"}.get(attention, attention)
    assert found["memory"]["limit"] == CHIPS["v5e"].usable_hbm_bytes
    assert found["times"]["network"] > 0 and found["times"]["interconnect"] > 0
    # The kernel's products are taken for those of XLA's attention.
    assert 0.9 < found["work"]["executed_flops"] / found["work"]["model_flops"] < 1.1
