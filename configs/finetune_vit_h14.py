r"""ViT-H/14, fine-tuning on ImageNet for 90 epochs (Tables 5 and 9).

python -m darl_jax.train --config=configs/finetune_vit_h14.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 1.0038 TFLOP an image for forward and backward, 115.7 EFLOP in all, or at half of the
bfloat16 peak 65.0 H100-hours or 234 TPU v4 chip-hours.

Expected, from the paper: 85.5% top-1 from a checkpoint of darl_vit_h14_mse.py, 85.9% from one of
darl_vit_h14_diffusion.py (Table 5).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.fine_tuning("H")
    config.model.patch_size = 14
    return config
