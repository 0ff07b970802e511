r"""MAE with a ViT-H/14: ImageNet pre-training for 800 epochs on raw pixels (arXiv 2111.06377).

python -m darl_jax.train --config=configs/mae_vit_h14.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/mae_vit_h14.py

Without a word it is `800ep`, DARL's length and targets. Expected, from MAE's paper; not reached
here: ImageNet top-1 in % after finetune_mae_vit_h14.py.

word                  top-1
800ep                 no number is given
1600ep_normalized     86.9 (86.2 on raw pixels, Table 7)
rope2d                nobody has tried it
"""

import ml_collections

from darl_jax.config import mae_recipes

WORDS = mae_recipes.PRE_TRAINING


def get_config(word: str = "800ep") -> ml_collections.ConfigDict:
    config = mae_recipes.pre_training("H", word)
    config.model.patch_size = 14
    return config
