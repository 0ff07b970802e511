r"""ViT-H/14, diffusion, gamma ~ Beta(0.03, 1): ImageNet pre-training for 800 epochs (Table 8).

python -m darl_jax.train --config=configs/darl_vit_h14_diffusion.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/darl_vit_h14_diffusion.py

On chips with 16 GB of memory add --config.mesh.fsdp=16.

Expected, from the paper; not reached here: 85.9% ImageNet top-1 after finetune_vit_h14.py
(Table 5); validation loss 0.146 (Table 15).
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="diffusion", size="H")
    config.total_epochs = 800.0
    config.model.patch_size = 14
    config.objective.patch_decoder.kind = "transformer"
    config.objective.patch_decoder.layers = 1
    config.data.dataset = "imagenet2012"
    return config
