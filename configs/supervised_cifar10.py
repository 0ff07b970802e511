r"""A very small ViT (width 64, 4 blocks, patches of 8) on CIFAR-10, supervised, from nothing.

python -m darl_jax.train --config=configs/supervised_cifar10.py \
    --workdir=runs/cifar10_supervised --config.data.data_dir=~/tensorflow_datasets

Causal attention: --config.objective.mask=causal. Another encoding: --config.model.positions=none.

Cost: about a minute on 2 CPU cores. Expected: docs/transfer.md has what runs of it gave.
"""

import ml_collections

from darl_jax.config import default_config, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="classification")
    config.batch_size = 128
    config.total_steps = 200
    config.model.update(recipes.TINY, patch_size=8)
    config.objective.pooling = "mean"
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.6, 1.0)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 25
    config.checkpoint.every_steps = 200
    config.evaluation.loss_every_steps = 200
    return config
