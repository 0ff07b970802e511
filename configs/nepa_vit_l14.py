r"""NEPA, ViT-L/14: next-embedding prediction on ImageNet, and its fine-tuning.

python -m darl_jax.train --config=configs/nepa_vit_l14.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.train --config=configs/nepa_vit_l14.py:finetune \
    --workdir=gs://bucket/finetuned --config.init.checkpoint=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/nepa_vit_l14.py

word                  epochs
pretrain (default)    1600      recipes.nepa
finetune              100       recipes.nepa_fine_tuning, which says where it differs

Expected, from github.com/SihanXU/nepa; not reached here: 85.40% ImageNet top-1 after fine-tuning,
with the average of the parameters, at its best epoch on the validation split.
"""

import ml_collections

from darl_jax.config import recipes

WORDS = {"pretrain": recipes.nepa, "finetune": recipes.nepa_fine_tuning}


def get_config(word: str = "pretrain") -> ml_collections.ConfigDict:
    return recipes.entry(WORDS, word)("L")
