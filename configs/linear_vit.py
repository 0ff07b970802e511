r"""Linear probes of every block of a ViT on ImageNet (Table 13, Figure 8).

python -m darl_jax.train --config=configs/linear_vit.py:l16 --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/linear_vit.py:l16
python -m darl_jax.figures.depth runs/linear --output=depth.png

Expected: Figure 8b draws accuracy over depth for checkpoints of darl_vit_*_diffusion.py; the paper
prints no number.

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
    config = recipes.linear_probes(size)
    config.model.patch_size = patch_size
    return config
