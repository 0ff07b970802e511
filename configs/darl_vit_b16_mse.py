r"""ViT-B/16, squared error: ImageNet pre-training for 800 epochs (Table 8).

python -m darl_jax.train --config=configs/darl_vit_b16_mse.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/darl_vit_b16_mse.py

Expected, from the paper; not reached here: 82.7% ImageNet top-1 after finetune_vit_b16.py
(Table 5).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse", size="B")
    config.total_epochs = 800.0
    config.model.patch_size = 16
    config.data.dataset = "imagenet2012"
    return config
