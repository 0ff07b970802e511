r"""Attentive probes of every block of a ViT on ImageNet, as in AIM (arXiv 2401.08541).

python -m darl_jax.train --config=configs/attentive_vit.py:l16 --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/attentive_vit.py:l16

Expected: nothing to compare with, since the paper has no attentive probes. AIM's larger models
have 78.5% to 84.0%.

word    backbone
b16     ViT-B/16
l16     ViT-L/16
h14     ViT-H/14
"""

import ml_collections

from darl_jax.config import recipes

WORDS = {"b16": ("B", 16), "l16": ("L", 16), "h14": ("H", 14)}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    size, patch_size = recipes.entry(WORDS, word)
    config = recipes.attentive_probes(size)
    config.model.patch_size = patch_size
    return config
