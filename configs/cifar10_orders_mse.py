r"""A very small ViT (width 64, 4 blocks, patches of 4) on CIFAR-10, to compare orders of patches.

python -m darl_jax.train --config=configs/cifar10_orders_mse.py --workdir=runs/cifar10_spiral \
    --config.model.order.name=spiral --config.data.data_dir=~/tensorflow_datasets

A grid of 8 x 8 patches, so that blocks of 2 and of 4 divide it. benchmarks/patch_orders.py trains
one for each order, and two of two streams.

Cost: 90 MFLOP an image for forward and backward, 2.3 TFLOP in all; a minute on 2 CPU cores.
Expected: docs/transfer.md has what runs of it gave.
"""

import ml_collections

from darl_jax.config import default_config, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse")
    config.batch_size = 128
    config.total_steps = 200
    config.model.update(recipes.TINY, patch_size=4)
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.6, 1.0)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.checkpoint.every_steps = 200
    config.evaluation.loss_every_steps = 200
    config.evaluation.pictures_every_steps = 200
    config.evaluation.probe_every_steps = 200
    config.evaluation.probe.labels_per_class = 100
    config.evaluation.probe.seeds = 3
    config.evaluation.probe.baselines = ("random",)
    return config
