r"""MAE with a ViT-B/16: ImageNet pre-training for 800 epochs on raw pixels (arXiv 2111.06377).

python -m darl_jax.train --config=configs/mae_vit_b16.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/mae_vit_b16.py

Without a word it is `800ep`, DARL's length and targets. Expected, from MAE's paper; not reached
here: ImageNet top-1 in % after finetune_mae_vit_b16.py.

word                  top-1
800ep                 no number is given
1600ep_normalized     83.6 (83.3 on raw pixels, Table 7)
rope2d                nobody has tried it
"""

import ml_collections

from darl_jax.config import mae_recipes

WORDS = mae_recipes.PRE_TRAINING


def get_config(word: str = "800ep") -> ml_collections.ConfigDict:
    config = mae_recipes.pre_training("B", word)
    config.model.patch_size = 16
    return config
