"""Whole runs: pre-training with pictures, and what goes on from its checkpoint."""

import pytest

from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params
from tests.tiny_runs import run, tiny


@pytest.mark.slow
def test_fine_tuning_and_probes_start_from_a_pre_training_run(tmp_path) -> None:
    pretrained = tmp_path / "pretrained"
    # Patches of 2: 16 of them, of which 4 are kept.
    keys = {"model__patch_size": 2, "model__positions": "sincos2d"}
    shape = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    decoder = {f"objective__decoder__{key}": value for key, value in shape.items()}
    assert run(tiny("mae", kinds=["reconstructions"], **keys, **decoder), pretrained) == 0
    losses = [
        row["validation/loss"] for row in read_metrics(pretrained) if "validation/loss" in row
    ]
    assert losses[-1] < losses[0]
    picture = "pictures/reconstructions_00000012.png"
    assert (pretrained / picture).exists()
    params, _, _ = restore_params(str(pretrained))
    assert set(params) == {"backbone", "mae_decoder"}
    assert set(params["mae_decoder"]) == {"embed", "mask_token", "blocks", "norm", "to_pixels"}

    start = {"init__checkpoint": str(pretrained)}
    fine_tuning = {"objective__norm_after_pooling": True, "objective__pooling": "mean"}
    config = tiny(
        "classification", **start, **keys | {"model__positions": "learnable"}, **fine_tuning,
        optimizer__layer_decay=0.75,
    )  # fmt: skip
    assert run(config, tmp_path / "learnable") == 0
    tuned, _, _ = restore_params(str(tmp_path / "learnable"))
    assert set(tuned) == {"backbone", "pooled_norm", "head"}
    assert "positions" in tuned["backbone"]

    probes = {"objective__final_norm": True, "objective__pooling": "start"}
    config = tiny("probes", "lars", **start, **keys, **probes, objective__mask="full")
    assert run(config, tmp_path / "probes") == 0
