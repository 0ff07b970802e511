r"""ViT-H/14: attentive probes of every block on ImageNet, as in AIM.

python -m darl_jax.train --config=configs/attentive_vit_h14.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3372 TFLOP an image (the backbone forward, and the probes), 43.2 EFLOP in all, or at half
of the bfloat16 peak 24.3 H100-hours or 87 TPU v4 chip-hours.

Expected: nothing to compare with; the paper has no attentive probes. AIM's models, which are
larger, have 78.5% to 84.0% (arXiv 2401.08541).
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.attentive_probes("H")
    config.model.patch_size = 14
    return config
