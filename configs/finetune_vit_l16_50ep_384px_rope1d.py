r"""ViT-L/16 with 1D RoPE, fine-tuning on ImageNet at 384 pixels (Table 1).

python -m darl_jax.train --config=configs/finetune_vit_l16_50ep_384px_rope1d.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Positions are those of 224 pixels: coordinates are scaled by 14/24.

Cost: 1.1464 TFLOP an image for forward and backward, 73.4 EFLOP in all, or at half of the bfloat16
peak 41.2 H100-hours or 148 TPU v4 chip-hours.

Expected, from the paper: 84.2% top-1 from a checkpoint of darl_vit_l16_mse_400ep_rope1d.py (Table
1).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.fine_tuning("L", epochs=50)
    config.model.positions = "rope1d"
    config.model.trained_image_size = 224
    config.data.image_size = 384
    return config
