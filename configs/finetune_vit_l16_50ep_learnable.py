r"""ViT-L/16 with learnable positions, fine-tuning on ImageNet for 50 epochs (Table 1).

python -m darl_jax.train --config=configs/finetune_vit_l16_50ep_learnable.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3693 TFLOP an image for forward and backward, 23.7 EFLOP in all, or at half of the bfloat16
peak 13.3 H100-hours or 48 TPU v4 chip-hours.

Expected, from the paper: 83.2% top-1 from a checkpoint of darl_vit_l16_mse_400ep_learnable.py
(Table 1).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.fine_tuning("L", epochs=50)
    config.model.positions = "learnable"
    return config
