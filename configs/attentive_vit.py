r"""Attentive probes of every block of a ViT on ImageNet, as in AIM (arXiv 2401.08541).

python -m darl_jax.train --config=configs/attentive_vit.py:l16 --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/attentive_vit.py:l16

Expected: nothing to compare with, since the paper has no attentive probes. AIM's larger models
have 78.5% to 84.0%.

word    backbone
b16     ViT-B/16
l16     ViT-L/16
h14     ViT-H/14
"""

import ml_collections
from ml_collections import config_dict

from darl_jax.config import default_config, recipes

WORDS = {"b16": ("B", 16), "l16": ("L", 16), "h14": ("H", 14)}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    size, patch_size = recipes.entry(WORDS, word)
    config = default_config(objective="probes", size=size)
    config.init.checkpoint = config_dict.placeholder(str)
    config.model.patch_size = patch_size
    config.data.dataset = "imagenet2012"
    config.data.crop_scale = (0.08, 1.0)
    config.data.randaugment.magnitude = 9.0
    config.objective.kind = "attentive"
    config.objective.average_blocks = 6
    config.batch_size = 1024
    config.total_epochs = 100.0
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 3.0
    config.optimizer.warmup_epochs = 5.0
    return config
