r"""ViT-H/14: linear probes of every block on ImageNet (Table 13, Figure 8).

python -m darl_jax.train --config=configs/linear_vit_h14.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3348 TFLOP an image (the backbone forward, and the probes), 38.6 EFLOP in all, or at half
of the bfloat16 peak 21.7 H100-hours or 78 TPU v4 chip-hours.

Expected: the paper shows accuracy over depth as a picture (Figure 8b) and prints no number.
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.linear_probes("H")
    config.model.patch_size = 14
    return config
