r"""A small ViT (width 128, 6 blocks, patches of 8) fine-tuned on CIFAR-10 for two epochs.

python -m darl_jax.train --config=configs/finetune_cifar10.py \
    --workdir=runs/cifar10_finetuned --config.data.data_dir=~/tensorflow_datasets \
    --config.init.checkpoint=runs/cifar10_pretrained

An empty checkpoint (--config.init.checkpoint=) trains the same from nothing.
"""

import ml_collections
from ml_collections import config_dict

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="classification")
    config.batch_size = 128
    config.total_steps = 800
    config.init.checkpoint = config_dict.placeholder(str)
    config.model.width = 128
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.mlp_dim = 512
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.unroll = 6
    config.objective.mask = "causal"
    config.objective.pooling = "mean"
    config.data.name = "cifar10"
    config.data.validation_split = "test"
    config.data.image_size = 32
    config.data.crop_scale = (0.6, 1.0)
    config.data.eval_crop = 1.0
    config.data.in_memory = True
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.checkpoint.every_steps = 400
    config.evaluation.loss_every_steps = 400
    return config
