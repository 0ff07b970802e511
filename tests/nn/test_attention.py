"""Every attention kernel that can run here against softmax attention in float64 NumPy."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.nn import attention as attention_lib

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def inputs(batch: int, tokens: int, heads: int, channels: int) -> tuple[Arrays, np.ndarray]:
    """Query, key and value, and the gradient of something by the output."""
    rng = np.random.default_rng(0)
    q, k, v, g = rng.normal(size=(4, batch, tokens, heads, channels)).astype(np.float32)
    return (2 * q, k, v), g


def visible(mask: str | np.ndarray, batch: int, tokens: int) -> np.ndarray:
    """(batch, query, key): who sees whom, entry by entry."""
    query, key = np.indices((tokens, tokens))
    if isinstance(mask, str):
        seen = np.full((batch, tokens, tokens), mask == "full")
    else:
        seen = key < mask[:, None, None]
    return (key <= query) | seen


def reference(
    arrays: Arrays, cotangent: np.ndarray, mask: str | np.ndarray
) -> tuple[np.ndarray, Arrays]:
    """Attention and its gradient by q, k and v, written out in float64."""
    q, k, v, g = (np.moveaxis(x.astype(np.float64), 2, 1) for x in (*arrays, cotangent))
    batch, _, tokens, channels = q.shape
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(channels)
    logits = np.where(visible(mask, batch, tokens)[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = g @ v.swapaxes(-1, -2)
    dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdims=True))
    dlogits /= np.sqrt(channels)
    gradients = (dlogits @ k, dlogits.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g)
    back = functools.partial(np.moveaxis, source=1, destination=2)
    return back(weights @ v), tuple(back(x) for x in gradients)  # type: ignore[return-value]


def assert_equals_reference(function, arrays, cotangent, mask, atol: float) -> None:
    @jax.jit
    def run(*args):
        out, vjp = jax.vjp(function, *args)
        return out, vjp(jnp.asarray(cotangent, out.dtype))

    out, gradients = run(*arrays)
    exact, exact_gradients = reference(tuple(np.asarray(x) for x in arrays), cotangent, mask)
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, atol=atol)
    for name, got, expected in zip("qkv", gradients, exact_gradients, strict=True):
        np.testing.assert_allclose(
            np.asarray(got, np.float64), expected, atol=4 * atol, err_msg=f"gradient by {name}"
        )


MASKS = {"causal": "causal", "full": "full", "prefix": np.array([0, 1, 4, 9])}


@pytest.mark.parametrize("mask", MASKS)
def test_xla_attention_and_its_gradient_equal_float64(mask: str) -> None:
    arrays, cotangent = inputs(4, 9, 2, 8)
    function = functools.partial(
        attention_lib.attention,
        mask=jnp.asarray(MASKS[mask]) if mask == "prefix" else mask,
        implementation="xla",
    )
    assert_equals_reference(function, arrays, cotangent, MASKS[mask], atol=2e-6)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_splash_attention_and_its_gradient_equal_float64_in_pallas_interpreter(mask: str) -> None:
    """130 tokens are padded to 256 and 16 channels to 128: padding must not be seen."""
    arrays, cotangent = inputs(1, 130, 2, 16)
    function = functools.partial(attention_lib._splash, causal=mask == "causal", interpret=True)
    assert_equals_reference(function, arrays, cotangent, mask, atol=1e-5)


@pytest.mark.gpu  # of NVIDIA, compute capability 8.0 or more
@pytest.mark.parametrize("mask", MASKS)
def test_cudnn_attention_and_its_gradient_equal_float64(mask: str) -> None:
    arrays, cotangent = inputs(4, 64, 2, 16)
    rounded = tuple(jnp.asarray(x, jnp.bfloat16) for x in arrays)
    dense = np.array([0, 1, 20, 64]) if mask == "prefix" else mask
    function = functools.partial(
        attention_lib.attention,
        mask=jnp.asarray(dense) if mask == "prefix" else mask,
        implementation="cudnn",
    )
    # Weights and outputs are rounded to bfloat16, 2^-9 of values of up to about 4.
    assert_equals_reference(function, rounded, cotangent, dense, atol=2e-2)


DEVICES = {
    name: types.SimpleNamespace(platform=platform, device_kind=f"Some {name}", **capability)
    for name, platform, capability in (
        ("cpu", "cpu", {}),
        ("tpu", "tpu", {}),
        ("gpu", "gpu", {"compute_capability": "8.0"}),
        ("hopper", "gpu", {"compute_capability": "9.0"}),
        ("old gpu", "gpu", {"compute_capability": "7.5"}),
        ("amd gpu", "gpu", {"compute_capability": "gfx90a"}),
    )
}


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "head_dim", "tokens", "chosen"),
    [
        ("auto", "cpu", "float32", 64, 196, "xla"),
        ("auto", "gpu", "bfloat16", 64, 196, "cudnn"),
        ("auto", "gpu", "float32", 64, 196, "xla"),
        ("auto", "gpu", "bfloat16", 20, 196, "xla"),
        ("auto", "tpu", "bfloat16", 64, 196, "xla"),
        ("auto", "tpu", "bfloat16", 64, 4096, "splash"),
        ("xla", "tpu", "bfloat16", 64, 4096, "xla"),
        ("cudnn", "gpu", "bfloat16", 64, 196, "cudnn"),
        ("splash", "tpu", "float32", 64, 196, "splash"),
        ("auto", "gpu", "bfloat16", 256, 196, "xla"),
        ("auto", "hopper", "bfloat16", 256, 196, "cudnn"),
        ("auto", "old gpu", "bfloat16", 64, 196, "xla"),
        ("auto", "amd gpu", "bfloat16", 64, 196, "xla"),
    ],
)
def test_the_kernel_follows_platform_type_and_size(
    asked: str, device: str, dtype: str, head_dim: int, tokens: int, chosen: str
) -> None:
    got = attention_lib.choose_implementation(
        asked, device=DEVICES[device], dtype=dtype, head_dim=head_dim, tokens=tokens
    )
    assert got == chosen


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "head_dim", "message"),
    [
        ("cudnn", "cpu", "bfloat16", 64, "NVIDIA GPU.*Some cpu"),
        ("cudnn", "gpu", "float32", 64, "16-bit dtype.*float32"),
        ("cudnn", "old gpu", "bfloat16", 64, "8.0 or more.*Some old gpu"),
        ("cudnn", "gpu", "bfloat16", 20, "multiple of 8.*head_dim 20"),
        ("splash", "gpu", "bfloat16", 64, "needs a TPU, not platform gpu"),
        ("flash", "gpu", "bfloat16", 64, "'flash' is unknown.*auto, xla, cudnn, splash"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(
    asked: str, device: str, dtype: str, head_dim: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention_lib.choose_implementation(
            asked, device=DEVICES[device], dtype=dtype, head_dim=head_dim, tokens=196
        )


@pytest.mark.parametrize(
    ("asked", "device", "tokens", "chosen"),
    [
        ("auto", "tpu", 4096, "xla"),
        ("auto", "gpu", 4096, "cudnn"),
        ("auto", "gpu", 225, "xla"),
        ("splash", "tpu", 4096, "splash' cannot take a prefix mask; choose 'xla'"),
        ("cudnn", "gpu", 225, "with a prefix mask an even number .*head_dim 64 and 225 tokens"),
    ],
)
def test_the_kernel_for_a_prefix_mask_is_one_that_takes_it(
    asked: str, device: str, tokens: int, chosen: str
) -> None:
    choose = functools.partial(
        attention_lib.choose_implementation, asked, device=DEVICES[device], dtype="bfloat16",
        head_dim=64, tokens=tokens, prefix_mask=True,
    )  # fmt: skip
    if chosen in attention_lib.IMPLEMENTATIONS:
        assert choose() == chosen
    else:
        with pytest.raises(ValueError, match=chosen):
            choose()


def test_splash_refuses_a_prefix_mask() -> None:
    q, k, v = (jnp.asarray(x) for x in inputs(1, 4, 1, 4)[0])
    with pytest.raises(ValueError, match="cannot take a prefix mask"):
        attention_lib.attention(q, k, v, mask=jnp.array([2]), implementation="splash")
