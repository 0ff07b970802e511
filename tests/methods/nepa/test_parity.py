"""Loss and gradients of next-embedding prediction against PyTorch in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from darl_jax.methods.nepa.next_embedding import NextEmbeddingConfig
from tests.methods.nepa.test_next_embedding import KEY, make_batch
from tests.methods_on_images import images, method
from tests.nn.test_backbone_keys import NEPA, SIZES, reference

torch = pytest.importorskip("torch")

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RGB = images(8, MEAN, STD)


def exact_patches(batch: dict[str, jax.Array]) -> np.ndarray:
    """Standardized patches of the unmasked examples, by loops."""
    pixels = np.asarray(batch["image"], np.float64)[np.asarray(batch["mask"])]
    pixels = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    rows = [
        pixels[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(len(pixels), -1)
        for i in range(3)
        for j in range(5)
    ]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize(
    "keys",
    [NEPA, NEPA | {"qk_norm": "scale"}, {"positions": "sincos2d"}],
    ids=["base", "large", "added_positions"],
)
def test_loss_and_gradients_equal_pytorch_in_float64(keys, stop_gradient: bool):
    """All tokens go through PyTorch's blocks, and the last one's output is dropped."""
    with jax.enable_x64(True):
        of = method(NextEmbeddingConfig(stop_gradient=stop_gradient), data=RGB, **SIZES | keys)
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))
        rng = np.random.default_rng(0)
        flat = {
            path: rng.normal(0.5 if path[-1] == "scale" else 0.0, 0.4, leaf.shape)
            for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(shapes)).items()
        }
        batch = make_batch()

        @jax.jit
        def ours(params: Any) -> Any:
            return of.loss(nnx.merge(graphdef, params), batch, KEY)

        nested = traverse_util.unflatten_dict(flat)
        (loss, metrics), gradients = jax.value_and_grad(ours, has_aux=True)(nested)
        gradients = traverse_util.flatten_dict(gradients["backbone"], sep="/")
        assert loss.dtype == jnp.float64

        params = {
            "/".join(path[1:]): torch.tensor(each, requires_grad=True)
            for path, each in flat.items()
        }
        patches = torch.tensor(exact_patches(batch))
        table = None
        if of.model.positions == "sincos2d":
            # The trained grid has 4 x 4 patches.
            table = torch.tensor(scaled_sincos((3, 5), (4, 4), of.model.width))
        visible = torch.ones(16, 16, dtype=torch.bool).tril()
        output = reference(of.model, params, patches, visible, table)
        target = patches @ params["patch_embedding/kernel"] + params["patch_embedding/bias"]
        target = target if table is None else target + table
        if stop_gradient:
            target = target.detach()
        cosine = torch.nn.functional.cosine_similarity(output[:, :-1], target, dim=-1)
        expected = -cosine.mean()
        expected.backward()

    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    assert float(metrics["loss"].count) == 3 * 15
    largest = max(np.abs(each).max() for each in gradients.values())
    for name, each in params.items():
        np.testing.assert_allclose(
            gradients[name], each.grad.numpy(), rtol=0, atol=1e-11 * largest, err_msg=name
        )


def scaled_sincos(grid: tuple[int, int], trained: tuple[int, int], width: int) -> np.ndarray:
    """Channels [sin x, cos x, sin y, cos y] of coordinates in patches of the trained grid."""
    quarter = width // 4
    rates = 10_000.0 ** (-np.arange(quarter) / quarter)
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    at = [np.outer(x * trained[1] / grid[1], rates), np.outer(y * trained[0] / grid[0], rates)]
    waves = [wave(each) for each in at for wave in (np.sin, np.cos)]
    return np.concatenate(waves, -1)
