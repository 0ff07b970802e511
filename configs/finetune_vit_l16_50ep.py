r"""ViT-L/16: fine-tuning on ImageNet for 50 epochs without drop path (Tables 1, 3, 7 and 9).

python -m darl_jax.train --config=configs/finetune_vit_l16_50ep.py --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/finetune_vit_l16_50ep.py

Without a word it is `base`. At 384 pixels positions are those of 224: coordinates are scaled by
14/24.

Expected, from the paper; not reached here:

word               from a checkpoint of                       top-1    table
base               darl_vit_l16_orders.py:raster_224px        82.7     3: full, last token
full_mean          darl_vit_l16_orders.py:raster_224px        82.7     3: full, mean
causal_last        darl_vit_l16_orders.py:raster_224px        81.7     3: causal, last token
causal_mean        darl_vit_l16_orders.py:raster_224px        81.5     3: causal, mean
none               darl_vit_l16_positions.py:none             81.9     1
sincos2d           darl_vit_l16_positions.py:sincos2d         83.1     1
learnable          darl_vit_l16_positions.py:learnable        83.2     1
rope1d             darl_vit_l16_positions.py:rope1d           83.5     1
rope2d (= base)    darl_vit_l16_positions.py:rope2d           84.5     1
rope1d_384         darl_vit_l16_positions.py:rope1d           84.2     1, 384 pixels
rope2d_384         darl_vit_l16_positions.py:rope2d           85.1     1, 384 pixels
raster             darl_vit_l16_orders.py:raster              83.3     7, 256 pixels
nested_raster_2    darl_vit_l16_orders.py:nested_raster_2     83.3     7, 256 pixels
nested_raster_4    darl_vit_l16_orders.py:nested_raster_4     83.4     7, 256 pixels
nested_raster_8    darl_vit_l16_orders.py:nested_raster_8     83.3     7, 256 pixels
round_robin_2      darl_vit_l16_orders.py:round_robin_2       83.0     7, 256 pixels
round_robin_4      darl_vit_l16_orders.py:round_robin_4       82.7     7, 256 pixels
round_robin_8      darl_vit_l16_orders.py:round_robin_8       82.6     7, 256 pixels
base               darl_vit_l16_two_stream.py:raster                   Figure 6, no number
base               darl_vit_l16_two_stream.py:random                   Figure 6, no number
"""

import ml_collections

from darl_jax.config import recipes

_AT_384 = {"data.image_size": 384, "model.trained_image_size": 224}

WORDS = {
    "base": {},
    "full_mean": {"objective.mask": "full", "objective.pooling": "mean"},
    "causal_last": {"objective.mask": "causal", "objective.pooling": "last"},
    "causal_mean": {"objective.mask": "causal", "objective.pooling": "mean"},
    "none": {"model.positions": "none"},
    "sincos2d": {"model.positions": "sincos2d"},
    "learnable": {"model.positions": "learnable"},
    "rope1d": {"model.positions": "rope1d"},
    "rope2d": {"model.positions": "rope2d"},
    "rope1d_384": {"model.positions": "rope1d"} | _AT_384,
    "rope2d_384": {"model.positions": "rope2d"} | _AT_384,
} | recipes.PATCH_ORDERS


def get_config(word: str = "base") -> ml_collections.ConfigDict:
    keys = recipes.entry(WORDS, word)
    config = recipes.fine_tuning("L", epochs=50)
    config.update_from_flattened_dict(keys)
    return config
