"""AIM's trunk, heads, targets, loss and gradients in float64 against PyTorch."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from darl_jax.methods.aim.head import HeadConfig
from darl_jax.methods.aim.objective import AIM, AIMConfig, AIMMethod
from darl_jax.nn.orders import OrderConfig, fixed_order
from darl_jax.nn.vit import ViTConfig
from tests.methods_on_images import images, method

torch = pytest.importorskip("torch")

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
PATCH, GRID = 4, (3, 5)  # not square, so that rows and columns differ
PATCHES = GRID[0] * GRID[1]
PREFIX = np.array([1, 6, PATCHES - 1, 4])
MASK = np.array([True, True, True, False])
VIT: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "patch_size": PATCH,
    **AIMMethod.model_defaults,
}
SMALL: dict[str, Any] = {"depth": 3, "width": 12, "num_heads": 3}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sincos(width: int) -> Any:
    """Channels [sin x, cos x, sin y, cos y], written out for each patch."""
    rows = []
    for patch in range(PATCHES):
        waves: list[float] = []
        for at in (patch % GRID[1], patch // GRID[1]):
            angles = [at / 10_000 ** (4 * i / width) for i in range(width // 4)]
            waves += [*np.sin(angles), *np.cos(angles)]
        rows.append(waves)
    return torch.tensor(np.array(rows))


class Reference:
    """AIM as its paper says it, on parameters by path."""

    def __init__(self, params: dict[str, Any], vit: ViTConfig, objective: AIMConfig):
        self.params, self.vit, self.objective = params, vit, objective
        self.order = fixed_order(vit.order, GRID).tolist()

    def get(self, path: str, i: int | None) -> Any:
        value = self.params.get(path)
        return value if value is None or i is None else value[i]

    def dense(self, path: str, x: Any, i: int | None = None) -> Any:
        kernel = self.get(f"{path}/kernel", i)
        return torch.nn.functional.linear(x, kernel.T, self.get(f"{path}/bias", i))

    def norm(self, path: str, x: Any, i: int | None = None) -> Any:
        scale, bias = (self.get(f"{path}/{name}", i) for name in ("scale", "bias"))
        return torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, 1e-6)

    def attention(self, path: str, x: Any, i: int, heads: int, visible: Any) -> Any:
        q, k, v = (
            self.dense(f"{path}/{name}", x, i).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.dense(f"{path}/out", y.transpose(1, 2).flatten(2), i)

    def block(self, path: str, x: Any, i: int, heads: int, visible: Any) -> Any:
        normed = self.norm(f"{path}/norm_attention", x, i)
        x = x + self.attention(f"{path}/attention", normed, i, heads, visible)
        return self.mlp(path, x, i)

    def mlp(self, path: str, x: Any, i: int) -> Any:
        hidden = self.dense(f"{path}/mlp/up", self.norm(f"{path}/norm_mlp", x, i), i)
        return x + self.dense(f"{path}/mlp/down", torch.nn.functional.gelu(hidden), i)

    def patches(self, batch: Any) -> Any:
        """In the order of the sequence."""
        mean, std = torch.tensor(np.array(MEAN)), torch.tensor(np.array(STD))
        pixels = (torch.tensor(batch.astype(np.float64)) / 255 - mean) / std
        cut = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (b, h, w, c, p, q)
        return cut.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)[:, self.order]

    def output(self, patches: Any, prefix: np.ndarray) -> Any:
        """Output i is a prediction of patch i + 1."""
        x = self.dense("backbone/patch_embedding", patches)
        x = self.norm("backbone/patch_norm", x) + sincos(self.vit.width)[self.order]
        visible = torch.zeros(len(prefix), 1, PATCHES, PATCHES, dtype=torch.bool)
        for example, length in enumerate(prefix):
            for query in range(PATCHES):
                visible[example, 0, query, : query + 1] = True
                visible[example, 0, query, :length] = True
        for i in range(self.vit.depth):
            x = self.block("backbone/blocks", x, i, self.vit.num_heads, visible)
        x = self.norm("backbone/final_norm", x)
        head = self.objective.head
        if head.kind != "none":
            x = self.dense("head/from_backbone", x) + sincos(head.width)[self.order]
            for i in range(head.depth):
                if head.kind == "transformer":
                    x = self.block("head/blocks", x, i, head.num_heads, visible)
                    continue
                if head.identity_attention:
                    x = x + self.norm("head/blocks/norm_attention", x, i)
                x = self.mlp("head/blocks", x, i)
            x = self.norm("head/norm", x)
        return self.dense("head/to_pixels", x)

    def loss(self, batch: Any, prefix: np.ndarray) -> Any:
        target = patches = self.patches(batch)
        if self.objective.normalize_target:
            centered = patches - patches.mean(-1, keepdim=True)
            target = centered / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        output, errors = self.output(patches, prefix), []
        for example in np.flatnonzero(MASK):
            for j in range(prefix[example], PATCHES):
                errors.append((output[example, j - 1] - target[example, j]).square().mean())
        return torch.stack(errors).mean()


@pytest.mark.parametrize(
    ("head", "order", "normalize"),
    [
        (HeadConfig("none"), "checkerboard", True),
        (HeadConfig("mlp", **SMALL), "raster", True),
        (HeadConfig("mlp", **SMALL, identity_attention=False), "spiral", False),
        (HeadConfig("transformer", **SMALL), "permutation", True),
    ],
)
def test_outputs_loss_and_gradients_equal_pytorch_in_float64(head, order, normalize) -> None:
    vit = ViTConfig(**VIT, dtype="float64", order=OrderConfig(order))
    objective = AIMConfig(normalize_target=normalize, head=head)
    of = method(objective, vit, images(8, MEAN, STD))
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: AIM(vit, head, grid=GRID, channels=3, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)
    flat = {
        path: rng.normal(0.5 if path[-1] == "scale" else 0.0, 0.4, leaf.shape)
        for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(shapes)).items()
    }
    size = len(PREFIX), PATCH * GRID[0], PATCH * GRID[1], 3
    batch = rng.integers(0, 256, size, np.uint8)

    @jax.jit
    def ours(params: Any) -> Any:
        model = nnx.merge(graphdef, params)
        inputs = {"image": jnp.asarray(batch), "mask": jnp.asarray(MASK)}
        loss, _ = of.loss_after(model, inputs, jnp.asarray(PREFIX))
        return loss, model(of.patches(inputs), jnp.asarray(PREFIX))

    nested = traverse_util.unflatten_dict(flat)
    (loss, output), gradients = jax.value_and_grad(ours, has_aux=True)(nested)

    params = {"/".join(path): torch.tensor(each, requires_grad=True) for path, each in flat.items()}
    reference = Reference(params, vit, objective)
    expected = reference.loss(batch, PREFIX)
    expected.backward()
    outputs = reference.output(reference.patches(batch), PREFIX)[:, :-1].detach().numpy()

    assert loss.dtype == output.dtype == jnp.float64
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(output, outputs, rtol=0, atol=1e-12 * np.abs(outputs).max())
    flat_gradients = traverse_util.flatten_dict(gradients, sep="/")
    largest = max(np.abs(each).max() for each in flat_gradients.values())
    for name, each in params.items():
        np.testing.assert_allclose(
            flat_gradients[name], each.grad.numpy(), rtol=0, atol=1e-12 * largest, err_msg=name
        )
