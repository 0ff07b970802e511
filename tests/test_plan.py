import json
import math
import pathlib

import jax
import pytest

from darl_jax import config
from darl_jax.nn.flops import forward_flops, train_step_flops
from darl_jax.planning import topology
from darl_jax.planning.step_memory import DoesNotFitError, advice_where_it_does_not_fit, refusal
from darl_jax.planning.step_plan import training_images
from darl_jax.runtime.chips import CHIPS
from darl_jax.training.optimizers import make_optimizer
from darl_jax.training.state import init_state
from tests.planned import REPOSITORY, SIZE, fsdp_plan, run_plan


def small(**changes: object) -> config.TrainConfig:
    values = config.from_file(f"{REPOSITORY}/configs/digits.py:mse")
    values.model.update(SIZE)
    values.update_from_flattened_dict(changes)
    return config.load(values)


def parameters(of: config.TrainConfig) -> dict[str, tuple[int, ...]]:
    optimizer = make_optimizer(of.optimizer, 0.0)
    state = jax.eval_shape(
        lambda key: init_state(of.method.init, optimizer, key), jax.random.key(0)
    )
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = run_plan("--topology=h100:8", f"--json={path}")
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def test_every_device_of_a_data_parallel_mesh_holds_all_parameters_and_two_moments(
    data_parallel: tuple[dict, str],
) -> None:
    memory = data_parallel[0]["memory"]
    number = sum(math.prod(shape) for shape in parameters(small()).values())
    assert memory["parameters"] == 4 * number
    # Adam's moments and the two step counters of the chain.
    assert memory["optimizer"] == 8 * number + 2 * 4
    assert memory["peak"] > memory["parameters"] + memory["optimizer"] + memory["batch"]


def test_fsdp_splits_what_the_table_splits() -> None:
    sharded = fsdp_plan()
    # The blocks' six kernels are split in two; nothing else is as large as what is worth it.
    split = ("query", "key", "value", "out", "up", "down")
    expected = sum(
        4 * math.prod(shape) // (2 if path.split("/")[-2] in split and "kernel" in path else 1)
        for path, shape in parameters(small()).items()
    )
    assert sharded["memory"]["parameters"] == expected
    assert sharded["memory"]["limit"] is None and sharded["times"] is None


def test_flops_are_those_of_the_convention_and_the_compiled_step_does_as_many(
    data_parallel: tuple[dict, str],
) -> None:
    plan = data_parallel[0]
    forward = forward_flops(width=32, depth=2, mlp_dim=64, tokens=16, patch_dim=4, objective="mse")
    assert plan["work"]["model_flops"] == train_step_flops(forward, 64) / 8
    # All but the gradients with respect to the pixels, which are never formed.
    embedding = 2 * 15 * 4 * 32 * 64 / 8
    # Outside the convention: RoPE exchanges channel pairs of each block's query and key by a
    # product of (image, token, head) rows, the start token's too, with a square matrix; the
    # backward pass does it once more, for the input alone.
    heads, head_dim = 4, 8
    rotations = 2 * (2 * 2) * (2 * 16 * heads * head_dim**2) * 64 / 8
    assert plan["work"]["executed_flops"] == plan["work"]["model_flops"] - embedding + rotations
    assert (
        plan["times"]["compute"] == plan["work"]["executed_flops"] / CHIPS["h100"].peak_bf16_flops
    )


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


def test_the_run_takes_the_configs_steps_at_the_rooflines_rate(
    data_parallel: tuple[dict, str],
) -> None:
    plan, text = data_parallel
    times = plan["times"]
    parts = [times[name] for name in ("compute", "hbm", "interconnect", "network")]
    assert times["step"] == max(parts) and times["step_without_overlap"] == sum(parts)
    assert plan["images_per_second"] == 64 / times["step"]
    assert plan["total_steps"] == 2000 and plan["train_images"] == 1297
    assert plan["hours"] == pytest.approx(2000 * times["step"] / 3600)
    for said in ("compiled by XLA for CPUs", "peak rate is that of bfloat16", "parameters"):
        assert said in text


def test_what_does_not_fit_ends_with_1_and_one_line_of_advice() -> None:
    done = run_plan("--topology=h100:8", f"--config.batch_size={2**24}")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
    assert "the step needs" in errors[0] and "h100:8's chips have" in errors[0]
    assert "config.accumulation_steps" in errors[0]


def test_a_mesh_that_does_not_multiply_up_ends_with_2_and_one_line() -> None:
    done = run_plan("--topology=cpu:8", "--config.mesh.data=3")
    assert done.returncode == 2
    assert "config.mesh=(data=3" in done.stderr and "Traceback" not in done.stderr


def test_a_sweep_ranks_what_fits_and_prints_what_to_paste(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.json"
    done = run_plan("--topology=h100:2", "--sweep", "--compile_top=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "2 of 9 candidates were compiled" in done.stdout
    best = json.loads(path.read_text())
    mesh = " ".join(f"--config.mesh.{axis}={best['mesh'][axis]}" for axis in best["mesh"])
    assert f"Best: {mesh} --config.model.remat={best['config']['model']['remat']}" in done.stdout


@pytest.mark.parametrize(
    "name",
    ["v9:4x4", "v5e", "v5e:", "h100:8x8", "2xh100:8", "cpu:0", "v5e:4xx4", "V5E:4x4", "0xv5e:4x4"],
)
def test_an_unknown_topology_is_refused_with_the_valid_forms(name: str) -> None:
    with pytest.raises(ValueError, match=r"v5e:16x16|the number of devices") as caught:
        topology.open_topology(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (18.07G) exceeds available HBM (15.75G).",
            "temporaries alone need 18.07 GiB on each device, and the compiler has 15.75 GiB",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 940.50M of 512.00M "
            "hbm. Exceeded hbm capacity by 428.50M.\n\nTotal hbm usage >= 1.2G:",
            "the step needs 0.92 GiB on each device, and the compiler has 0.50 GiB",
        ),
        ("RESOURCE_EXHAUSTED: no room", "finds no room: RESOURCE_EXHAUSTED: no room"),
    ],
)
def test_the_compilers_refusal_is_told_with_its_numbers(message: str, told: str) -> None:
    assert told in refusal(message)


def test_only_a_refusal_for_memory_is_advice() -> None:
    with (
        pytest.raises(DoesNotFitError, match=r"config\.mesh\.fsdp"),
        advice_where_it_does_not_fit(),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 2G of 1G hbm.")
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        advice_where_it_does_not_fit(),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_the_number_of_images_is_never_guessed(tfds_dir: str) -> None:
    changes = {"data.source": "tfds", "data.dataset": "imagenet2012", "data.image_size": 224}
    known = small(**changes)
    assert training_images(known, None)[0] == 1_281_167
    assert training_images(small(**changes, **{"data.train_split": "train[:10%]"}), None)[0] == (
        pytest.approx(128_117, abs=1)
    )
    assert training_images(known, 12) == (12, "--train_images")
    # The dataset that is there has the last word, a sample too.
    assert training_images(small(**changes, **{"data.data_dir": tfds_dir}), None)[0] < 1_281_167
    with pytest.raises(ValueError, match="--train_images=N"):
        training_images(small(**changes | {"data.dataset": "mine"}), None)
    with pytest.raises(ValueError, match="train_split"):
        training_images(small(**changes, **{"data.train_split": "trian"}), None)


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
    assert found["attention"] == {"auto": "xla"}.get(attention, attention)
    assert found["memory"]["limit"] == CHIPS["v5e"].usable_hbm_bytes
    assert found["times"]["network"] > 0 and found["times"]["interconnect"] > 0
    ratio = found["work"]["executed_flops"] / found["work"]["model_flops"]
    # Splash attention computes 128 x 128 tokens where the digits have 16.
    assert 0.9 < ratio < 1.1 if attention == "auto" else ratio > 10
