r"""ViT-L/16, fine-tuning on ImageNet for 90 epochs (Tables 5 and 9).

python -m darl_jax.train --config=configs/finetune_vit_l16.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3693 TFLOP an image for forward and backward, 42.6 EFLOP in all, or at half of the bfloat16
peak 23.9 H100-hours or 86 TPU v4 chip-hours.

Expected, from the paper: 84.7% top-1 from a checkpoint of darl_vit_l16_mse.py, 84.9% from one of
darl_vit_l16_diffusion.py (Table 5).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.fine_tuning("L")
