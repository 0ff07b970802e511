r"""ViT-L/16 with learnable positions, squared error: 400 epochs of pre-training (Table 1).

python -m darl_jax.train --config=configs/darl_vit_l16_mse_400ep_learnable.py \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3683 TFLOP an image for forward and backward, 188.7 EFLOP in all, or at half of the
bfloat16 peak 106.0 H100-hours or 381 TPU v4 chip-hours.

Expected, from the paper: 83.2% ImageNet top-1 after finetune_vit_l16_50ep_learnable.py (Table 1).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse", size="L")
    config.total_epochs = 400.0
    config.model.patch_size = 16
    config.model.positions = "learnable"
    config.data.dataset = "imagenet2012"
    return config
