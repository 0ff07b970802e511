r"""ViT-L/16 with sine-cosine positions, supervised on ImageNet, full attention (Tables 1, 10).

python -m darl_jax.train --config=configs/supervised_vit_l16_sincos2d.py \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3693 TFLOP an image for forward and backward, 94.6 EFLOP in all, or at half of the bfloat16
peak 53.1 H100-hours or 191 TPU v4 chip-hours.

Expected, from the paper: 82.5% top-1 (Table 1).

At 384 pixels, without further training:

python -m darl_jax.evaluate --config=configs/supervised_vit_l16_sincos2d.py \
    --checkpoint=gs://bucket/run --config.data.image_size=384 \
    --config.model.trained_image_size=224 --config.data.data_dir=gs://bucket/tensorflow_datasets
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.supervised("L")
    config.model.positions = "sincos2d"
    config.objective.mask = "full"
    return config
