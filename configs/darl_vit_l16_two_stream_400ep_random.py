r"""ViT-L/16 with two streams, another random order for each image, squared error (Figure 6).

python -m darl_jax.train --config=configs/darl_vit_l16_two_stream_400ep_random.py \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.6756 TFLOP an image for forward and backward, 346.2 EFLOP in all, or at half of the bfloat16
peak 194.4 H100-hours or 699 TPU v4 chip-hours.

Expected, from the paper: Figure 6 has the accuracy after finetune_vit_l16_50ep.py, in raster order,
over the length of pre-training; it prints no number. Random order needs longer to
reach raster order and does not pass it.
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="mse", size="L")
    config.total_epochs = 400.0
    config.model.patch_size = 16
    config.model.two_stream = True
    config.model.order.name = "random"
    config.data.dataset = "imagenet2012"
    return config
