r"""A small ViT (width 128, 6 blocks, patches of 8) on CIFAR-10, to be fine-tuned and probed.

python -m darl_jax.train --config=configs/cifar10_transfer_mse.py \
    --workdir=runs/cifar10_pretrained --config.data.data_dir=~/tensorflow_datasets
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse")
    config.batch_size = 128
    config.total_epochs = 12.0
    config.objective.normalise_target = True
    config.model.width = 128
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.mlp_dim = 512
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.unroll = 6
    config.data.name = "cifar10"
    config.data.validation_split = "test"
    config.data.image_size = 32
    config.data.eval_crop = 1.0
    config.data.in_memory = True
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_epochs = 1.0
    config.checkpoint.every_steps = 500
    config.evaluation.loss_every_steps = 1000
    config.evaluation.pictures_every_steps = 2000
    return config
