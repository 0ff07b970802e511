r"""ViT-L/16: linear probes of every block on ImageNet (Table 13, Figure 8).

python -m darl_jax.train --config=configs/linear_vit_l16.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.1233 TFLOP an image (the backbone forward, and the probes), 14.2 EFLOP in all, or at half
of the bfloat16 peak 8.0 H100-hours or 29 TPU v4 chip-hours.

Expected: the paper shows accuracy over depth as a picture (Figure 8b) and prints no number.
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.linear_probes("L")
