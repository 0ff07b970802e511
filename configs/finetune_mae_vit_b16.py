r"""ViT-B/16: MAE's fine-tuning on ImageNet (arXiv 2111.06377, Table 9).

python -m darl_jax.train --config=configs/finetune_mae_vit_b16.py --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/finetune_mae_vit_b16.py

Expected, from MAE's paper; not reached here: top-1 83.6% from a checkpoint of
mae_vit_b16.py:1600ep_normalized.
"""

import ml_collections

from darl_jax.config import mae_recipes


def get_config() -> ml_collections.ConfigDict:
    config = mae_recipes.fine_tuning("B")
    config.model.patch_size = 16
    return config
