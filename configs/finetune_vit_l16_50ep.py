r"""ViT-L/16, fine-tuning on ImageNet for 50 epochs without drop path (Table 9).

python -m darl_jax.train --config=configs/finetune_vit_l16_50ep.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3693 TFLOP an image for forward and backward, 23.7 EFLOP in all, or at half of the bfloat16
peak 13.3 H100-hours or 48 TPU v4 chip-hours.

Expected, from the paper: 82.7% top-1 from a checkpoint of darl_vit_l16_mse_100ep.py (Table 3, full
attention and last token), 84.5% from one of darl_vit_l16_mse_400ep_rope2d.py (Table 1).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.fine_tuning("L", epochs=50)
