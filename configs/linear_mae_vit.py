r"""Linear probes of MAE's class token on ImageNet (arXiv 2111.06377, Table 10).

python -m darl_jax.train --config=configs/linear_mae_vit.py:l16 --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/linear_mae_vit.py:l16

There is a probe for each block, and the last one is MAE's. Settled here: random resized crops are
tried ten times, as elsewhere; the repository's once, as BYOL's.

Expected, from MAE's paper; not reached here:

word    backbone    top-1 in %, from mae_vit_*.py:1600ep_normalized
b16     ViT-B/16    68.0
l16     ViT-L/16    75.8
h14     ViT-H/14    76.6
"""

import ml_collections

from darl_jax.config import recipes

WORDS = {"b16": ("B", 16), "l16": ("L", 16), "h14": ("H", 14)}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    size, patch_size = recipes.entry(WORDS, word)
    config = recipes.linear_probes(size)
    config.model.patch_size = patch_size
    config.model.positions = "sincos2d"
    config.objective.mask = "full"
    config.objective.pooling = "start"
    config.objective.final_norm = True
    config.objective.label_smoothing = 0.0
    return config
