"""Layout over devices: eight forced host devices, in one process.

Run as a program this file computes what the tests compare and prints it as JSON.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn import attention as attention_lib
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import AdamWConfig, make_optimizer
from darl_jax.training.sharding import (
    MeshConfig,
    global_array,
    make_mesh,
    partition_spec,
    replicated,
)
from darl_jax.training.state import abstract_state, create_state, graph_definition
from darl_jax.training.step import lower_step, make_train_step
from tests.evaluators import test_likelihood
from tests.methods.mae import test_mae
from tests.methods.transfer import test_classification, test_mixing
from tests.methods_on_images import images, method
from tests.programs import finish, start

MESHES = [(1, 1, 1), (1, 8, 1), (2, 2, 2)]
STEPS = 5
BATCH = 16

# Of ViT-B/16 with a Transformer patch decoder, on a mesh (2, 2, 2): path, shape, layout.
TABLE: list[tuple[str, tuple[int, ...], list[str | None]]] = [
    *(
        row
        for name in ("query", "key", "value")
        for row in (
            (f"backbone/blocks/attention/{name}/kernel", (12, 768, 768), [None, "fsdp", "tensor"]),
            (f"backbone/blocks/attention/{name}/bias", (12, 768), [None, "tensor"]),
        )
    ),
    ("backbone/blocks/attention/out/kernel", (12, 768, 768), [None, "tensor", "fsdp"]),
    ("backbone/blocks/mlp/up/kernel", (12, 768, 3072), [None, "fsdp", "tensor"]),
    ("backbone/blocks/mlp/up/bias", (12, 3072), [None, "tensor"]),
    ("backbone/blocks/mlp/down/kernel", (12, 3072, 768), [None, "tensor", "fsdp"]),
    ("backbone/blocks/mlp/down/bias", (12, 768), []),
    ("backbone/patch_embedding/kernel", (768, 768), ["fsdp", None]),
    ("backbone/positions", (196, 768), [None, "fsdp"]),
    ("backbone/sos", (768,), []),
    ("patch_decoder/embedding/kernel", (769, 768), [None, "fsdp"]),
    ("patch_decoder/head/blocks/mlp/down/kernel", (2, 3072, 768), [None, "tensor", "fsdp"]),
    ("patch_decoder/to_pixels/kernel", (768, 588), ["fsdp", None]),
    ("opt_state/adam/mu/backbone/blocks/mlp/up/kernel", (12, 768, 3072), [None, "fsdp", "tensor"]),
    # What no axis divides stays whole; a dimension of the table too.
    ("patch_decoder/to_pixels/kernel", (769, 587), []),
    ("backbone/blocks/attention/query/kernel", (12, 769, 768), [None, None, "tensor"]),
    ("backbone/blocks/attention/query/kernel", (12, 768, 769), [None, "fsdp", None]),
    ("query_stream/query/kernel", (12, 768, 768), [None, "fsdp", "tensor"]),
    ("query_stream/query/bias", (12, 768), [None, "tensor"]),
    # Under 2^14 elements gathering costs more than it saves.
    ("patch_decoder/to_pixels/kernel", (128, 127), []),
    ("patch_decoder/to_pixels/kernel", (128, 128), ["fsdp", None]),
]


# Large enough for the fallback to split the embedding and the output.
METHOD = method(
    DiffusionConfig(draws=2, patch_decoder=PatchDecoderConfig("transformer", 1, True)),
    ViTConfig(width=96, depth=2, num_heads=4, mlp_dim=192, patch_size=8, dtype="float32"),
    images(16, (0.5,) * 3, (0.25,) * 3),
)


def train(sizes: tuple[int, int, int], initial: Any = None) -> dict[str, Any]:
    """A few steps on a mesh: losses, norms, and the part of each parameter on a device.

    From a state that is made on the mesh, or from a given one, which spares a compilation.
    """
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    optimizer = make_optimizer(AdamWConfig(), lambda step: 3e-3)
    step = make_train_step(graph_definition(METHOD.init), METHOD, optimizer)
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {"loss": [], "gradient_norm": [], "parameter_norm": []}
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(
            lambda leaf: leaf.sharding, abstract_state(METHOD.init, optimizer, mesh)
        )
        if initial is None:
            state = create_state(METHOD.init, optimizer, jax.random.key(0), mesh)
        else:
            state = jax.device_put(initial, shardings)
        out["initial"] = jax.device_get(state)
        key = jax.device_put(jax.random.key(1), replicated(mesh))
        run = None
        for _ in range(STEPS):
            batch = {
                "image": rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8),
                "mask": np.ones(BATCH, bool),
                "replaced": np.zeros(BATCH, bool),
                "stop": np.zeros(BATCH, bool),
            }
            batch = global_array(batch, mesh)
            # Compiled once: the state must come out laid out as it went in.
            run = run or lower_step(step, state, batch, key).compile()
            state, metrics = run(state, batch, key)
            for name in ("loss", "gradient_norm", "parameter_norm"):
                out[name].append(float(metrics[name].compute()))
    out["batch_shard"] = batch["image"].addressable_shards[0].data.shape
    adam = state.opt_state["adam"]
    for name, tree in (("params", state.params), ("mu", adam.mu), ("nu", adam.nu)):
        out[name] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                leaf.addressable_shards[0].data.shape
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
    return out


def splash_on_a_mesh() -> float:
    """Largest difference of splash attention, heads and examples split, from the plain one."""
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.normal(size=(3, 4, 130, 2, 16)), jnp.float32)
    plain = attention_lib.attention(q, k, v, mask="causal", implementation="xla")
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        run = jax.jit(lambda q, k, v: attention_lib._splash(q, k, v, causal=True, interpret=True))
        return float(jnp.abs(np.asarray(run(q, k, v)) - plain).max())


def main() -> None:
    runs = {str((1, 1, 1)): train((1, 1, 1))}
    initial = runs[str((1, 1, 1))]["initial"]
    for sizes in MESHES[1:]:
        runs[str(sizes)] = train(sizes, None if sizes == (2, 2, 2) else initial)
    same = jax.tree.map(np.array_equal, initial, runs[str((2, 2, 2))]["initial"])
    for run in runs.values():
        del run["initial"]
    results = {
        "runs": runs,
        "same_initial_state": jax.tree.all(same),
        "splash": splash_on_a_mesh(),
        "accuracy": test_classification.validation(8),
        "mixing": test_mixing.digest(8),
        "likelihood": test_likelihood.digest(8),
        "masked": test_mae.digest(8),
    }
    print(json.dumps(results))


@pytest.fixture(scope="module")
def eight_devices() -> dict[str, Any]:
    """What `main` printed in a process with eight devices."""
    output, _ = finish(start(__file__, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8"))
    return json.loads(output.splitlines()[-1])


@pytest.mark.process
@pytest.mark.parametrize("sizes", MESHES[1:], ids=str)
def test_every_mesh_computes_the_losses_of_one_device(eight_devices, sizes):
    one, run = eight_devices["runs"]["(1, 1, 1)"], eight_devices["runs"][str(sizes)]
    assert len(set(one["loss"])) == STEPS
    np.testing.assert_allclose(run["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(run["gradient_norm"], one["gradient_norm"], rtol=1e-4)
    np.testing.assert_allclose(run["parameter_norm"], one["parameter_norm"], rtol=1e-5)
    assert run["batch_shard"] == [BATCH // (sizes[0] * sizes[1]), 16, 16, 3]


@pytest.mark.process
def test_kernels_lie_split_as_the_table_says_and_optimizer_moments_with_them(eight_devices):
    mlp, in_2_2_2 = "backbone/blocks/mlp", eight_devices["runs"]["(2, 2, 2)"]["params"]
    in_1_8_1 = eight_devices["runs"]["(1, 8, 1)"]["params"]
    assert in_2_2_2[f"{mlp}/up/kernel"] == [2, 48, 96]
    assert in_2_2_2[f"{mlp}/down/kernel"] == [2, 96, 48]
    assert in_2_2_2["backbone/blocks/attention/query/bias"] == [2, 48]
    assert in_1_8_1[f"{mlp}/up/kernel"] == [2, 12, 192]
    assert in_1_8_1["patch_decoder/to_pixels/kernel"] == [96, 24]
    for run in eight_devices["runs"].values():
        assert run["params"] == run["mu"] == run["nu"]


@pytest.mark.process
def test_the_initial_state_is_the_same_on_one_device_and_on_eight(eight_devices):
    assert eight_devices["same_initial_state"]


@pytest.mark.process
def test_splash_attention_on_a_mesh_gives_each_device_its_examples_and_heads(eight_devices):
    assert eight_devices["splash"] < 1e-5


@pytest.mark.process
def test_mixing_accuracy_and_likelihood_do_not_depend_on_the_number_of_devices(eight_devices):
    for eight, one in zip(eight_devices["mixing"], test_mixing.digest(1), strict=True):
        for ours, expected in zip(eight, one, strict=True):
            # Products and sums may be fused otherwise: the last bits of float32.
            np.testing.assert_allclose(ours, expected, atol=1e-6)
    found, expected = eight_devices["accuracy"], test_classification.validation(19)
    assert found["accuracy"] == expected["accuracy"]
    assert found["top5_accuracy"] == expected["top5_accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert eight_devices["likelihood"] == pytest.approx(test_likelihood.digest(4), rel=2e-5)


def test_masks_are_those_of_one_device_and_no_token_is_sent(eight_devices: dict[str, Any]) -> None:
    found, expected = eight_devices["masked"], test_mae.digest(1)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["norm"] == pytest.approx(expected["norm"], rel=1e-4)
    assert found["sent"] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(3, 1, 1), r"config\.mesh=\(data=3, fsdp=1, tensor=1\) does not fit the 1 dev"),
        (MeshConfig(-1, 2, 1), r"fsdp=2.*does not fit the 1 devices"),
        (MeshConfig(-1, -1, 1), "at most one of them is -1"),
        (MeshConfig(0, 1, 1), "sizes are positive"),
        (MeshConfig(1, -2, 1), "sizes are positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config, jax.devices()[:1])


class FakeTpu:
    """What `make_mesh` asks a TPU: two slices of 2 x 2 chips."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number: int):
        self.id, self.slice_index, self.process_index = number, number // 4, number // 4
        self.coords = (number % 2, number // 2 % 2, 0)

    def __repr__(self) -> str:
        return f"slice {self.slice_index} chip {self.coords}"


TPUS: Any = [FakeTpu(number) for number in range(8)]


def test_slices_are_joined_along_data_and_by_nothing_else():
    for config in (MeshConfig(2, 4, 1), MeshConfig(4, 2, 1), MeshConfig(2, 2, 2), MeshConfig(-1)):
        grid = make_mesh(config, TPUS).devices
        assert {device.id for device in grid.flat} == set(range(8))
        for row in np.split(grid, 2):
            assert len({device.slice_index for device in row.flat}) == 1
    with pytest.raises(ValueError, match="data is 1 and must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(1, 8, 1), TPUS)


def test_the_layout_of_vit_b_is_the_golden_one():
    mesh = make_mesh(MeshConfig(-1, 2, 2), TPUS)  # -1 takes the devices that are left
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    for path, shape, expected in TABLE:
        assert list(partition_spec(path, shape, mesh)) == expected, (path, shape)
    # Without an axis fsdp the fallback splits nothing.
    without = make_mesh(MeshConfig(4, 1, 2), TPUS)
    assert not [*partition_spec("patch_decoder/to_pixels/kernel", (768, 768), without)]


if __name__ == "__main__":
    main()
