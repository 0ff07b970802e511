r"""ViT-L/16, diffusion, gamma ~ Beta(0.03, 1): ImageNet pre-training for 800 epochs (Table 8).

python -m darl_jax.train --config=configs/darl_vit_l16_diffusion.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/darl_vit_l16_diffusion.py

Expected, from the paper; not reached here: 84.9% ImageNet top-1 after finetune_vit_l16.py
(Table 5); validation loss 0.168 (Table 15).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="diffusion", size="L")
    config.total_epochs = 800.0
    config.model.patch_size = 16
    config.objective.patch_decoder.kind = "transformer"
    config.objective.patch_decoder.layers = 1
    config.data.dataset = "imagenet2012"
    return config
