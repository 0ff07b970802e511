r"""A small ViT (width 128, 6 blocks, patches of 8) on CIFAR-10, to be fine-tuned and probed.

python -m darl_jax.train --config=configs/cifar10_transfer_mse.py \
    --workdir=runs/cifar10_pretrained --config.data.data_dir=~/tensorflow_datasets

Cost: 0.120 GFLOP an image for forward and backward, 72 TFLOP in all; 26 minutes on 2 CPU cores
(385 images/s).

Expected, from a run of this file: validation loss 0.576, of patches that are normalised each by its
own mean and variance; docs/transfer.md has what fine-tuning and probes make of it.
"""

import ml_collections

from darl_jax.config import default_config, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse")
    config.batch_size = 128
    config.total_epochs = 12.0
    config.objective.normalise_target = True
    config.model.update(recipes.SMALL, patch_size=8)
    recipes.use_cifar10(config)
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_epochs = 1.0
    config.checkpoint.every_steps = 500
    config.evaluation.loss_every_steps = 1000
    config.evaluation.pictures_every_steps = 2000
    return config
