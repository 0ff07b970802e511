r"""ViT-L/16 with two streams, squared error: 400 epochs of pre-training on ImageNet (Figure 6).

python -m darl_jax.train --config=configs/darl_vit_l16_two_stream.py:random \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/darl_vit_l16_two_stream.py:random

Expected, from the paper; not reached here: Figure 6 draws top-1 after finetune_vit_l16_50ep.py, in
raster order, over the length of pre-training and prints no number. A random order takes longer to
reach the raster order and does not pass it.

word      order
raster    raster
random    a random one for each image and step
"""

import ml_collections

from darl_jax.config import default_config, recipes

WORDS = {
    "raster": {"model.order.name": "raster"},
    "random": {"model.order.name": "random"},
}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    keys = recipes.entry(WORDS, word)
    config = default_config(objective="mse", size="L")
    config.total_epochs = 400.0
    config.model.patch_size = 16
    config.objective.two_stream = True
    config.data.dataset = "imagenet2012"
    config.update_from_flattened_dict(keys)
    return config
