r"""Methods of pre-training side by side on CIFAR-10 at equal training FLOPs, on 2 CPU cores.

python benchmarks/methods.py --data_dir=~/tensorflow_datasets --folder=runs/methods

trains all of them, fine-tunes and probes each, and makes the table and the picture of
docs/comparison.md. One of them:

python -m darl_jax.train --config=configs/cifar10_methods.py:mae --workdir=runs/cifar10_mae \
    --config.data.data_dir=~/tensorflow_datasets
python -m darl_jax.cost --config=configs/cifar10_methods.py:mae

One backbone for all: width 128, 6 blocks, patches of 8 x 8 pixels, 2D RoPE, and a start token
except in AIM, which has none. Data, rates and their schedule are the same; the number of steps is
what 54 TFLOP pay for.

word             objective                                            MFLOP/example  steps
mse              DARL, squared error of normalized patches            120.2          3510
diffusion        DARL, diffusion of each patch, a decoder of 1 block  146.1          2886
aim              AIM, normalized patches, an MLP head of 4 x 128      172.2          2448
mae              MAE, normalized patches, a decoder of 64 x 2         47.8           8820
next_embedding   next-embedding prediction                            118.0          3576
"""

from collections.abc import Callable

import ml_collections

from darl_jax.config import default_config, evaluator, recipes


def _mse() -> ml_collections.ConfigDict:
    config = _shared("mse", steps=3510)
    config.objective.normalize_target = True
    return config


def _diffusion() -> ml_collections.ConfigDict:
    config = _shared("diffusion", steps=2886)
    config.objective.patch_decoder.kind = "transformer"
    config.objective.patch_decoder.layers = 1
    return config


def _aim() -> ml_collections.ConfigDict:
    config = _shared("aim", steps=2448)
    config.objective.head.depth = 4
    config.objective.head.width = 128
    config.evaluators.probe.mask = "full"
    return config


def _mae() -> ml_collections.ConfigDict:
    config = _shared("mae", steps=8820)
    config.objective.normalize_target = True
    config.objective.decoder.update(width=64, depth=2, num_heads=4, mlp_dim=256)
    config.evaluators.probe.mask = "full"
    return config


def _next_embedding() -> ml_collections.ConfigDict:
    return _shared("next_embedding", steps=3576)


def _shared(objective: str, *, steps: int) -> ml_collections.ConfigDict:
    """Backbone, data and optimizer of all; six probes on the way."""
    config = default_config(objective=objective)
    config.batch_size = 128
    config.total_epochs, config.total_steps = None, steps
    config.checkpoint.every_steps = steps
    config.model.update(recipes.SMALL, patch_size=8, positions="rope2d")
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-3
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, steps // 10
    config.optimizer.clip_norm = 1.0
    config.evaluators.validation.every_steps = steps // 6
    config.evaluators.probe = evaluator("linear_probe", every_steps=steps // 6)
    config.evaluators.probe.labels_per_class = 100
    config.evaluators.probe.seeds = 3
    config.evaluators.probe.baselines = ("random",)
    recipes.use_cifar10(config)
    return config


WORDS: dict[str, Callable[[], ml_collections.ConfigDict]] = {
    "mse": _mse,
    "diffusion": _diffusion,
    "aim": _aim,
    "mae": _mae,
    "next_embedding": _next_embedding,
}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    return recipes.entry(WORDS, word)()
