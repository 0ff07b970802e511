"""MAE's published arrays as the start of a run: each is at the place that has its meaning."""

import numpy as np
import pytest
from flax import nnx

from darl_jax.interchange.initialization import load_initial, transfer
from darl_jax.training.checkpoint.reading import arrays_by_name
from darl_jax.training.state import parameters
from tests.interchange.test_foreign import DECODER, MAE_FINE_TUNED, MAE_FULL, D, arrays, saved
from tests.tiny_runs import tiny

DENSE, NORM = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "bias"}


def layer(theirs: dict, name: str, ours: str, names: dict) -> dict:
    """An array of torch's (out, in) or of a norm, under our path."""
    return {f"{ours}/{names[kind]}": theirs[f"{name}.{kind}"].T for kind in names}


def block(theirs: dict, name: str, width: int) -> dict:
    """A block with one matrix for query, key and value, from the top to the bottom."""
    found = layer(theirs, f"{name}.norm1", "norm_attention", NORM)
    for i, each in enumerate(("query", "key", "value")):
        rows = slice(i * width, (i + 1) * width)
        part = {f"{each}.{kind}": theirs[f"{name}.attn.qkv.{kind}"][rows] for kind in DENSE}
        found |= layer(part, each, f"attention/{each}", DENSE)
    found |= layer(theirs, f"{name}.attn.proj", "attention/out", DENSE)
    found |= layer(theirs, f"{name}.norm2", "norm_mlp", NORM)
    found |= layer(theirs, f"{name}.mlp.fc1", "mlp/up", DENSE)
    return found | layer(theirs, f"{name}.mlp.fc2", "mlp/down", DENSE)


def blocks(theirs: dict, name: str, ours: str, width: int) -> dict:
    first, second = (block(theirs, f"{name}.{i}", width) for i in range(2))
    return {f"{ours}/{path}": np.stack([x, second[path]]) for path, x in first.items()}


def full(theirs: dict) -> dict:
    return (
        layer(theirs, "norm", "backbone/final_norm", NORM)
        | layer(theirs, "decoder_embed", "mae_decoder/embed", DENSE)
        | blocks(theirs, "decoder_blocks", "mae_decoder/blocks", DECODER)
        | layer(theirs, "decoder_norm", "mae_decoder/norm", NORM)
        | layer(theirs, "decoder_pred", "mae_decoder/to_pixels", DENSE)
        | {"mae_decoder/mask_token": theirs["mask_token"][0, 0]}
    )


def fine_tuned(theirs: dict) -> dict:
    return (
        layer(theirs, "fc_norm", "pooled_norm", NORM)
        | layer(theirs, "head", "head", DENSE)
        | {"backbone/positions": theirs["pos_embed"][0, 1:]}
        # Which nothing reads.
        | {"backbone/final_norm/scale": np.ones(D), "backbone/final_norm/bias": np.zeros(D)}
    )


DECODER_KEYS = {"width": DECODER, "depth": 2, "num_heads": 4, "mlp_dim": 20}


@pytest.mark.parametrize(
    ("objective", "shapes", "expected", "keys"),
    [
        (
            "mae", MAE_FULL, full,
            {"model__positions": "sincos2d"}
            | {f"objective__decoder__{key}": value for key, value in DECODER_KEYS.items()},
        ),
        (
            "classification", MAE_FINE_TUNED, fine_tuned,
            {
                "model__positions": "learnable", "objective__pooling": "mean",
                "objective__norm_after_pooling": True, "objective__num_classes": 5,
            },
        ),
    ],
    ids=["full", "fine-tuned"],
)  # fmt: skip
def test_a_run_starts_with_each_array_at_its_place(tmp_path, objective, shapes, expected, keys):
    theirs = arrays(shapes)
    config = tiny(
        objective, model__width=D, model__mlp_dim=24, model__patch_size=2, data__channels=3,
        data__mean=(0.5, 0.4, 0.3), data__std=(0.2, 0.3, 0.4),
        init__checkpoint=saved(tmp_path / "mae.safetensors", theirs), **keys,
    )  # fmt: skip
    model = nnx.eval_shape(lambda: config.method.init(nnx.Rngs(0)))
    result = transfer(parameters(model), load_initial(config))
    assert result.new == result.dropped == ()
    found = arrays_by_name(result.params)
    patches = theirs["patch_embed.proj.weight"].transpose(2, 3, 1, 0)  # row, column, channel
    wanted = (
        {"backbone/patch_embedding/kernel": patches.reshape(-1, D)}
        | {"backbone/patch_embedding/bias": theirs["patch_embed.proj.bias"]}
        | {"backbone/sos": theirs["cls_token"][0, 0]}
        | blocks(theirs, "blocks", "backbone/blocks", D)
        | expected(theirs)
    )
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
