r"""A small ViT (width 128, 6 blocks, patches of 8) fine-tuned on CIFAR-10 for an epoch and a half.

python -m darl_jax.train --config=configs/finetune_cifar10.py \
    --workdir=runs/cifar10_finetuned --config.data.data_dir=~/tensorflow_datasets \
    --config.init.checkpoint=runs/cifar10_pretrained

An empty checkpoint (--config.init.checkpoint=) trains the same from nothing.

Cost: 0.125 GFLOP an image for forward and backward, 9.6 TFLOP in all; three and a half minutes on 2
CPU cores.

Expected, from runs of this file with three seeds: accuracy 0.539 +- 0.013 from a checkpoint of
cifar10_transfer_mse.py, 0.465 +- 0.004 from nothing.
"""

import ml_collections
from ml_collections import config_dict

from darl_jax.config import default_config, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="classification")
    config.batch_size = 128
    config.total_steps = 600
    config.init.checkpoint = config_dict.placeholder(str)
    config.model.update(recipes.SMALL, patch_size=8)
    config.objective.mask = "causal"
    config.objective.pooling = "mean"
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.6, 1.0)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.checkpoint.every_steps = 600
    config.evaluation.loss_every_steps = 600
    return config
