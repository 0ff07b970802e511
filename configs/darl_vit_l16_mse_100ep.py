r"""ViT-L/16, squared error: ImageNet pre-training for 100 epochs (Tables 2 and 3).

python -m darl_jax.train --config=configs/darl_vit_l16_mse_100ep.py \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3683 TFLOP an image for forward and backward, 47.2 EFLOP in all, or at half of the bfloat16
peak 26.5 H100-hours or 95 TPU v4 chip-hours.

Expected, from the paper: 82.7% ImageNet top-1 after finetune_vit_l16_50ep.py (Table 3).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse", size="L")
    config.total_epochs = 100.0
    config.model.patch_size = 16
    config.data.dataset = "imagenet2012"
    return config
