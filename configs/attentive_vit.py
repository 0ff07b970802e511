r"""Attentive probes of a ViT on ImageNet, as in AIM (arXiv 2401.08541).

python -m darl_jax.train --config=configs/attentive_vit.py:l16 --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/attentive_vit.py:l16

A probe reads the mean of six blocks. The first words have one on every block. `last` has one that
reads the last six; `best` reads six that end at three quarters of the depth, as the best of AIM-1B
and 3B do, and the backbone runs no further; `grid` tries AIM's range of learning rates and its two
decays on the last six side by side.

Expected: nothing to compare with, since the paper has no attentive probes. AIM's own backbones, in
attentive_aim.py, have 78.5% to 82.4% with the last six blocks and 79.4% to 84.0% with the best.

word                                 backbone
b16, b16_last, b16_best, b16_grid    ViT-B/16
l16, l16_last, l16_best, l16_grid    ViT-L/16
h14, h14_last, h14_best, h14_grid    ViT-H/14
"""

import ml_collections

from darl_jax.config import VIT_SIZES, default_config, recipes

_BACKBONES = {"b16": ("B", 16), "l16": ("L", 16), "h14": ("H", 14)}
_ENDS = ("", "_last", "_best", "_grid")
WORDS = {f"{name}{end}": (*of, end) for name, of in _BACKBONES.items() for end in _ENDS}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    size, patch_size, end = recipes.entry(WORDS, word)
    depth = VIT_SIZES[size].depth
    config = default_config(objective="probes", size=size)
    recipes.attentive_probes(config)
    config.model.patch_size = patch_size
    config.objective.blocks = {"": (), "_best": (3 * depth // 4,)}.get(end, (depth,))
    if end == "_grid":
        recipes.try_rates_and_decays(config)
    return config
