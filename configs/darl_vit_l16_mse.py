r"""ViT-L/16, squared error: ImageNet pre-training for 800 epochs (Table 8).

python -m darl_jax.train --config=configs/darl_vit_l16_mse.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/darl_vit_l16_mse.py

Expected, from the paper; not reached here: 84.7% ImageNet top-1 after finetune_vit_l16.py
(Table 5); validation loss 0.182 (Table 15).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse", size="L")
    config.total_epochs = 800.0
    config.model.patch_size = 16
    config.data.dataset = "imagenet2012"
    return config
