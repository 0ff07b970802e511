import json
import sys

import pytest

from tests.planned import SIZE, fsdp_plan, run

# What a run does: the step is lowered, and either compiled or loaded.
RUN = """
import functools, json, pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from darl_jax import build, config as config_lib
from darl_jax.planning import step_plan
from darl_jax.compilation import describe, load_executable
from darl_jax.sharding import global_array, make_mesh
from darl_jax.train_state import create_state
from darl_jax.optimizers import learning_rate_schedule, make_optimizer
sys.path.insert(0, "configs")
import digits_mse

folder = pathlib.Path(sys.argv[1])


def same(config):
    pass


@functools.cache
def lowered_step(change, total_steps):
    values = digits_mse.get_config()
    values.model.update(json.loads(sys.argv[2]))
    values.mesh.data, values.mesh.fsdp = 2, 2
    change(values)
    config = config_lib.load(values)
    mesh = make_mesh(config.mesh)
    lowered, _ = step_plan.lower(
        config, mesh, "xla", train_images=1297, total_steps=total_steps
    )
    return config, mesh, lowered


def run(change=same, name="good", steps=0, total_steps=2000):
    config, mesh, lowered = lowered_step(change, total_steps)
    description = describe(config, mesh, lowered, attention="xla")
    try:
        loaded = load_executable(folder / name, lowered, mesh, description=description)
    except ValueError as error:
        return str(error)
    schedule = learning_rate_schedule(
        config.optimizer, batch_size=64, steps_per_epoch=1297 / 64, total_steps=total_steps
    )
    optimizer = make_optimizer(config.optimizer, schedule)
    results = []
    for step in (lowered.compile(), loaded):
        with jax.set_mesh(mesh):
            key = jax.random.key(1)
            state = create_state(build.model_builder(config), optimizer, key, mesh)
            rng = np.random.default_rng(0)
            for _ in range(steps):
                shapes = build.abstract_batch(config, mesh)
                batch = {name: np.zeros(each.shape, each.dtype) for name, each in shapes.items()}
                batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
                batch["mask"] |= True
                state, metrics = step(state, global_array(batch, mesh), key)
        results.append([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state, metrics))])
    return {"equal": results[0] == results[1], "leaves": len(results[0]), "step": int(state.step)}


def wider(config):
    config.model.mlp_dim = 96


def other_mesh(config):
    config.mesh.data, config.mesh.fsdp = 4, 1


whole = (folder / "good").read_bytes()
(folder / "cut").write_bytes(whole[:-100])
(folder / "text").write_text("hello")
head, _, payload = whole.partition(b"\\n")
changed = json.loads(head)
changed["description"]["versions"]["jaxlib"] = "0.1"
(folder / "old").write_bytes(json.dumps(changed).encode() + b"\\n" + payload)
print(json.dumps({
    "good": run(steps=3),
    "config": run(wider),
    "mesh": run(other_mesh),
    "length": run(total_steps=2001),
    "cut": run(name="cut"),
    "text": run(name="text"),
    "version": run(name="old"),
}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("executables")
    (folder / "good").write_bytes(fsdp_plan()[1])
    done = run([sys.executable, "-c", RUN, str(folder), json.dumps(SIZE)])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_steps_of_a_loaded_executable_are_bit_identical_to_those_of_a_compiled_one(
    outcome: dict,
) -> None:
    assert outcome["good"]["equal"] and outcome["good"]["step"] == 3
    assert outcome["good"]["leaves"] > 30


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("config", "config.model.mlp_dim is 64 in the file and 96 here"),
        ("mesh", "mesh.data is 2 in the file and 4 here; mesh.fsdp is 2 in the file and 1 here"),
        ("length", "the length of the run"),
        ("version", "versions.jaxlib is '0.1' in the file"),
        ("cut", "is damaged"),
        ("text", "is no file of --write_executable"),
    ],
)
def test_an_executable_for_something_else_is_refused_in_one_line_that_says_what_differs(
    outcome: dict, case: str, told: str
) -> None:
    assert told in outcome[case]
    assert "\n" not in outcome[case]
