r"""ViT-L/16 at 256 px, raster order, fine-tuning (Table 7).

python -m darl_jax.train --config=configs/finetune_vit_l16_50ep_256px_raster.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.4864 TFLOP an image for forward and backward, 31.2 EFLOP in all, or at half of the bfloat16
peak 17.5 H100-hours or 63 TPU v4 chip-hours.

Expected, from the paper: 83.3% top-1 from a checkpoint of
darl_vit_l16_mse_100ep_256px_raster.py (Table 7).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.fine_tuning("L", epochs=50)
    config.data.image_size = 256
    return config
