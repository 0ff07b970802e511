r"""Attentive probes of every block of a small ViT on CIFAR-10.

python -m darl_jax.train --config=configs/attentive_cifar10.py \
    --workdir=runs/cifar10_attentive --config.data.data_dir=~/tensorflow_datasets \
    --config.init.checkpoint=runs/cifar10_pretrained

Cost: 0.043 GFLOP an image (the backbone forward, and the probes), 8.6 TFLOP in all; about 4 minutes
on 2 CPU cores.

Expected, from a run of this file: accuracy 0.481 at the second of six blocks.
"""

import ml_collections
from ml_collections import config_dict

from darl_jax.config import default_config, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="probes")
    config.batch_size = 512
    config.total_epochs = 4.0
    config.init.checkpoint = config_dict.placeholder(str)
    config.model.update(recipes.SMALL, patch_size=8)
    config.objective.kind = "attentive"
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.6, 1.0)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 3.0
    config.optimizer.warmup_epochs = 0.4
    config.checkpoint.every_steps = 200
    config.evaluation.loss_every_steps = 1000
    return config
