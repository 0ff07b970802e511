"""MAE against PyTorch in float64, and the properties that make it MAE."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

from darl_jax.methods.base import average
from darl_jax.methods.mae.method import MAEConfig, MAEMethod, draw_shuffle
from darl_jax.methods.mae.model import MAE, DecoderConfig
from darl_jax.nn import orders
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.patches import normalize_patches
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.sharding import MeshConfig, global_array, make_mesh, replicated
from darl_jax.training.state import init_state
from darl_jax.training.step import make_train_step
from tests.methods_on_images import images, method

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
DATA = images(16, MEAN, STD)
GRID, TRAINED_GRID, PATCH = (3, 4), (4, 4), 4
BATCH, PATCHES, KEPT = 3, 12, 3
DECODER = DecoderConfig(width=24, depth=2, num_heads=3, mlp_dim=20)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def make_method(objective: MAEConfig, dtype: str = "float32", **keys: Any) -> MAEMethod:
    vit = ViTConfig(
        width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=PATCH, dtype=dtype,
        **{"positions": "sincos2d"} | keys,
    )  # fmt: skip
    return method(objective, vit, DATA)


def make_batch() -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 12, 16, 3), np.uint8)
    return {"image": jnp.asarray(pixels), "mask": jnp.ones(BATCH, bool)}


# --- PyTorch -------------------------------------------------------------------------------------


class Reference:
    """MAE in the order of the paper's steps, with every array in raster order in the decoder."""

    def __init__(self, torch: Any, params: dict[str, Any], positions: str, width: int):
        self.torch, self.params, self.positions, self.width = torch, params, positions, width

    def dense(self, name: str, x: Any, i: Any = ...) -> Any:
        return x @ self.params[f"{name}/kernel"][i] + self.params[f"{name}/bias"][i]

    def norm(self, name: str, x: Any, i: Any = ...) -> Any:
        scale, bias = (self.params[f"{name}/{part}"][i] for part in ("scale", "bias"))
        return self.torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, 1e-6)

    def coordinates(self) -> np.ndarray:
        """(column, row) of each patch in units of the trained grid."""
        return np.array(
            [
                (x * TRAINED_GRID[1] / GRID[1], y * TRAINED_GRID[0] / GRID[0])
                for y in range(GRID[0])
                for x in range(GRID[1])
            ]
        )

    def table(self, width: int) -> Any:
        """[sin x, cos x, sin y, cos y] of each patch."""
        quarter = width // 4
        rates = np.array([10_000.0 ** (-i / quarter) for i in range(quarter)])
        x, y = (axis[:, None] * rates for axis in self.coordinates().T)
        waves = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)]
        return self.torch.tensor(np.concatenate(waves, axis=1))

    def angles(self, head_dim: int) -> Any:
        """Of channel pairs (i, i + head_dim / 2), columns first; the class token's (0) in front."""
        pairs = head_dim // 4
        rates = np.array([10_000.0 ** (-i / pairs) for i in range(pairs)])
        x, y = (axis[:, None] * rates for axis in self.coordinates().T)
        return self.torch.tensor(np.pad(np.concatenate([x, y], axis=1), ((1, 0), (0, 0))))

    def block(self, name: str, x: Any, i: int, heads: int, angles: Any) -> Any:
        torch = self.torch

        def rotated(y: Any) -> Any:
            if angles is None:
                return y
            first, second = y.chunk(2, dim=-1)
            cos, sin = angles.cos()[:, None], angles.sin()[:, None]
            return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

        y = self.norm(f"{name}/norm_attention", x, i)
        q, k, v = (
            self.dense(f"{name}/attention/{part}", y, i).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        logits = rotated(q) @ rotated(k).transpose(-1, -2) / q.shape[-1] ** 0.5
        y = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.dense(f"{name}/attention/out", y, i)
        hidden = self.dense(f"{name}/mlp/up", self.norm(f"{name}/norm_mlp", x, i), i)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return x + self.dense(f"{name}/mlp/down", hidden, i)

    def __call__(self, pixels: np.ndarray, noise: Any, normalize: bool) -> tuple[Any, ...]:
        """Encoded tokens, decoder's output, mask of removed patches, and loss."""
        torch = self.torch
        x = (pixels.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
        x = torch.tensor(x).reshape(BATCH, GRID[0], PATCH, GRID[1], PATCH, 3)
        patches = x.permute(0, 1, 3, 2, 4, 5).reshape(BATCH, PATCHES, -1)

        rope = self.positions == "rope2d"
        x = self.dense("backbone/patch_embedding", patches)
        if not rope:
            x = x + self.table(self.width)
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        kept = shuffle[:, : int(PATCHES * (1 - 0.75))]
        x = torch.gather(x, 1, kept[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([self.params["backbone/sos"].expand(BATCH, 1, -1), x], dim=1)
        angles = None
        if rope:
            each = self.angles(8)
            angles = torch.stack([each[[0, *(1 + row).tolist()]] for row in kept])
        for i in range(2):
            x = self.block("backbone/blocks", x, i, 2, angles)
        encoded = self.norm("backbone/final_norm", x)

        y = self.dense("mae_decoder/embed", encoded)
        masked = self.params["mae_decoder/mask_token"].expand(BATCH, PATCHES - kept.shape[1], -1)
        full = torch.cat([y[:, 1:], masked], dim=1)
        full = torch.gather(full, 1, restore[..., None].expand(-1, -1, full.shape[-1]))
        if not rope:
            full = full + self.table(24)
        y = torch.cat([y[:, :1], full], dim=1)
        angles = self.angles(8)[None] if rope else None
        for i in range(2):
            y = self.block("mae_decoder/blocks", y, i, 3, angles)
        y = self.dense("mae_decoder/to_pixels", self.norm("mae_decoder/norm", y))[:, 1:]

        target = patches
        if normalize:
            variance = target.var(dim=-1, keepdim=True, unbiased=True)
            target = (target - target.mean(dim=-1, keepdim=True)) / (variance + 1e-6) ** 0.5
        mask = (restore >= kept.shape[1]).double()
        loss = ((y - target).square().mean(dim=-1) * mask).sum() / mask.sum()
        return encoded, y, mask, loss


@pytest.mark.parametrize("positions", ["sincos2d", "rope2d"])
@pytest.mark.parametrize("normalize", [False, True])
def test_tokens_output_losses_and_gradients_equal_pytorch(float64, normalize, positions) -> None:
    torch = pytest.importorskip("torch")
    objective = MAEConfig(normalize_target=normalize, decoder=DECODER)
    of = make_method(objective, "float64", positions=positions)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    flat = {
        path: rng.normal(1.0 if path[-1] == "scale" else 0.0, 0.4, leaf.shape)
        for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(shapes)).items()
    }
    batch, noise = make_batch(), rng.random((BATCH, PATCHES))
    order = jnp.argsort(jnp.asarray(noise), axis=1)

    @jax.jit
    def ours(params: Any) -> Any:
        model = nnx.merge(graphdef, params)
        patches, grid = of.patches(batch), of.batch_grid(batch)
        kept = order[:, :KEPT]
        encoded = model.backbone(patches, mask="full", grid=grid, order=kept).tokens
        output = model(patches, order, kept=KEPT, grid=grid)
        return of.errors(model, batch, order).mean(), (encoded, output)

    nested = traverse_util.unflatten_dict(flat)
    (loss, (encoded, output)), gradients = jax.value_and_grad(ours, has_aux=True)(nested)
    assert loss.dtype == jnp.float64

    params = {"/".join(path): torch.tensor(each, requires_grad=True) for path, each in flat.items()}
    reference = Reference(torch, params, positions, 16)
    expected = reference(np.asarray(batch["image"]), torch.tensor(noise), normalize)
    expected[-1].backward()
    tokens, pixels, mask, expected_loss = (each.detach().numpy() for each in expected)

    def close(found: Any, wanted: np.ndarray, name: str, scale: float | None = None) -> None:
        largest = np.abs(wanted).max() if scale is None else scale
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * largest, err_msg=name)

    close(encoded, tokens, "tokens")
    removed = np.asarray(order)[:, KEPT:]
    np.testing.assert_array_equal(
        np.sort(removed, axis=1), [np.flatnonzero(row) for row in mask], "removed patches"
    )
    close(output, np.take_along_axis(pixels, removed[..., None], axis=1), "pixels")
    close(loss, expected_loss, "loss")
    flat_gradients = traverse_util.flatten_dict(gradients, sep="/")
    scale = max(np.abs(each).max() for each in flat_gradients.values())
    assert flat_gradients.keys() == params.keys()
    for name, each in params.items():
        close(flat_gradients[name], each.grad.numpy(), name, scale)


# --- properties ----------------------------------------------------------------------------------


class Oracle(MAE, pytree=False):
    """Predicts the removed patches as a function of them."""

    def __init__(self, answer: Any):
        self.answer = answer

    def __call__(self, patches: Any, order: Any, *, kept: int, grid: Any) -> Any:
        del grid
        return self.answer(orders.take(patches, order[:, kept:]))


def test_a_quarter_is_kept_in_the_references_arithmetic() -> None:
    assert [MAEConfig().kept(patches) for patches in (196, 256, 16)] == [49, 64, 4]
    assert MAEConfig(mask_ratio=0.7).kept(196) == 58  # 196 * (1 - 0.7) is 58.8


def test_the_loss_counts_removed_patches_of_examples_alone() -> None:
    of, batch, key = make_method(MAEConfig(decoder=DECODER)), make_batch(), jax.random.key(0)
    mask = jnp.array([True, False, True])
    wrong = Oracle(lambda target: jnp.where(mask[:, None, None], target + 2.0, jnp.nan))
    loss, metrics = of.loss(wrong, {**batch, "mask": mask}, key)
    np.testing.assert_allclose(loss, 4.0, rtol=1e-5)
    assert float(metrics["loss"].count) == 2 * (PATCHES - KEPT)
    assert jnp.isnan(of.loss(wrong, batch, key)[0]), "non-finite where it counts must be seen"


@pytest.mark.parametrize("normalize", [False, True])
def test_a_right_prediction_has_no_loss_and_is_the_image_in_pictures(normalize: bool) -> None:
    of = make_method(MAEConfig(normalize_target=normalize, decoder=DECODER))
    batch, key = make_batch(), jax.random.key(1)
    right = Oracle(normalize_patches if normalize else lambda target: target)
    assert of.loss(right, batch, key)[0] < 1e-10
    found = of.reconstruct(right, batch, key)
    np.testing.assert_allclose(found.target, of.patches(batch))
    np.testing.assert_allclose(found.reconstructed, found.target, atol=1e-5)
    np.testing.assert_array_equal(found.kept.sum(axis=1), KEPT)
    shifted = Oracle(lambda target: right.answer(target) + 1.0)
    moved = of.reconstruct(shifted, batch, key).reconstructed != found.reconstructed
    np.testing.assert_array_equal(moved.all(axis=-1), ~found.kept)
    np.testing.assert_array_equal(moved.any(axis=-1), ~found.kept)


class GivenMasks(MAEMethod):
    """Takes the order of each image's patches from the batch."""

    def loss(self, model: MAE, batch: Any, key: Any) -> Any:
        del key
        loss = average(self.errors(model, batch, batch["order"]), batch["mask"])
        return loss.compute(), {"loss": loss}


def test_micro_batches_with_the_masks_of_the_whole_batch_have_its_step(float64) -> None:
    """Also where one of them, (0, 2) and (1, 3), counts more images than the other."""
    like = make_method(MAEConfig(decoder=DECODER), "float64")
    of = GivenMasks(like.objective, like.model, like.data)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (4, 12, 16, 3), np.uint8)),
        "mask": jnp.array([True, True, True, False]),
        "order": jnp.argsort(jnp.asarray(rng.random((4, PATCHES))), axis=1),
        "replaced": jnp.zeros(4, bool),
        "stop": jnp.zeros(4, bool),
    }
    graphdef = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))[0]
    state = init_state(of.init, optax.sgd(0.1), jax.random.key(0))
    state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.ndim else x, state)

    def stepped(steps: int) -> Any:
        step = make_train_step(graphdef, of, optax.sgd(0.1), accumulation_steps=steps)
        new, metrics = jax.jit(step)(state, batch, jax.random.key(1))
        change = jax.tree.map(jnp.subtract, new.params, state.params)
        return change, metrics["loss"]

    (whole, loss), (parts, of_parts) = stepped(1), stepped(2)
    assert float(loss.count) == float(of_parts.count) == 3 * (PATCHES - KEPT)
    np.testing.assert_allclose(of_parts.compute(), loss.compute(), rtol=1e-12)
    largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    assert largest > 1e-3
    for found, wanted in zip(*map(jax.tree.leaves, (parts, whole)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * largest)


def test_predictions_do_not_see_what_was_removed() -> None:
    of, batch = make_method(MAEConfig(decoder=DECODER)), make_batch()
    model = of.init(nnx.Rngs(0))
    patches = of.patches(batch)
    order = draw_shuffle(jax.random.key(0), BATCH, PATCHES)
    predict = jax.jit(lambda patches: model(patches, order, kept=KEPT, grid=GRID))
    rows = jnp.arange(BATCH)
    base = predict(patches)
    removed = predict(patches.at[rows[:, None], order[:, KEPT:]].add(1.0))
    np.testing.assert_array_equal(removed, base)
    kept = predict(patches.at[rows, order[:, KEPT - 1]].add(1.0))
    assert (np.abs(kept - base).max(axis=-1) > 0).all()


def test_shuffles_are_permutations_that_follow_from_the_key_and_the_example() -> None:
    shuffles = draw_shuffle(jax.random.key(0), 200, 16)
    np.testing.assert_array_equal(np.sort(shuffles, axis=1), np.tile(np.arange(16), (200, 1)))
    np.testing.assert_array_equal(draw_shuffle(jax.random.key(0), 200, 16), shuffles)
    assert len(np.unique(shuffles, axis=0)) == 200
    assert (draw_shuffle(jax.random.key(1), 200, 16) != shuffles).any()
    # Each patch is kept in a quarter of the images: 50 +- 6.
    kept = np.bincount(np.asarray(shuffles)[:, :4].ravel(), minlength=16)
    assert np.abs(kept - 50).max() < 25


def test_the_loss_keeps_the_patches_of_the_least_noise() -> None:
    """The inverse of that ranking has the same distribution, and other masks."""
    of, batch, key = make_method(MAEConfig(decoder=DECODER)), make_batch(), jax.random.key(0)
    removed = np.argsort(jax.random.uniform(key, (BATCH, PATCHES)), axis=1)[:, KEPT:]
    found: dict[str, Any] = {}

    def answer(target: jax.Array) -> jax.Array:
        found["target"] = target
        return target

    of.loss(Oracle(answer), batch, key)
    expected = np.take_along_axis(np.asarray(of.patches(batch)), removed[..., None], axis=1)
    np.testing.assert_array_equal(found["target"], expected)


def digest(devices: int) -> dict[str, float]:
    """A batch split over devices; tests/training/test_sharding.py compares their numbers."""
    of = make_method(MAEConfig(decoder=DECODER))
    graphdef, params = nnx.split(of.init(nnx.Rngs(0)))
    mesh = make_mesh(MeshConfig(devices, 1, 1), jax.devices()[:devices])
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    with jax.set_mesh(mesh):
        batch = global_array({"image": pixels, "mask": np.ones(16, bool)}, mesh)
        params, key = jax.device_put((params, jax.random.key(0)), replicated(mesh))

        def loss(params: Any, batch: Any, key: Any) -> Any:
            return of.loss(nnx.merge(graphdef, params), batch, key)[0]

        step = jax.jit(jax.value_and_grad(loss)).lower(params, batch, key).compile()
        value, gradient = step(params, batch, key)
    program = step.as_text()
    sent = sum(program.count(f" {name}(") for name in ("all-gather", "all-to-all"))
    return {"loss": float(value), "norm": float(optax.global_norm(gradient)), "sent": sent}


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        (MAEConfig(mask_ratio=1.0), {}, "mask_ratio=1.0 keeps 0 of 16 patches"),
        (MAEConfig(mask_ratio=0.0), {}, "mask_ratio=0.0 keeps 16 of 16 patches"),
        (MAEConfig(), {"positions": "none"}, "positions='none' does not say where"),
        (MAEConfig(), {"positions": "rope1d"}, "positions='rope1d' does not say where"),
        (MAEConfig(), {"order": OrderConfig("spiral")}, "order.name='spiral' means nothing"),
        (
            MAEConfig(decoder=DecoderConfig(width=24, num_heads=4)),
            {"positions": "rope2d"},
            "objective.decoder: model.positions='rope2d' needs a head_dim",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_with_the_key(objective, model, message) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_method(objective, **model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": 0}, "objective.decoder.depth=0 must be at least 1"),
        ({"num_heads": 7}, "objective.decoder.width=512 must be a multiple of config"),
        ({"width": 18, "num_heads": 2}, "objective.decoder.width=18 must be a multiple of 4"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused_with_the_key(keys, message) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**keys)
