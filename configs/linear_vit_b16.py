r"""ViT-B/16: linear probes of every block on ImageNet (Table 13, Figure 8).

python -m darl_jax.train --config=configs/linear_vit_b16.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.0352 TFLOP an image (the backbone forward, and the probes), 4.1 EFLOP in all, or at half of
the bfloat16 peak 2.3 H100-hours or 8 TPU v4 chip-hours.

Expected: the paper shows accuracy over depth as a picture (Figure 8b) and prints no number.
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.linear_probes("B")
