r"""ViT-L/16 at 256 px, raster order, squared error (Table 7).

python -m darl_jax.train --config=configs/darl_vit_l16_mse_100ep_256px_raster.py \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.4856 TFLOP an image for forward and backward, 62.2 EFLOP in all, or at half of the bfloat16
peak 34.9 H100-hours or 126 TPU v4 chip-hours.

Expected, from the paper: 83.3% ImageNet top-1 after
finetune_vit_l16_50ep_256px_raster.py (Table 7).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse", size="L")
    config.total_epochs = 100.0
    config.model.patch_size = 16
    config.data.dataset = "imagenet2012"
    config.data.image_size = 256
    return config
