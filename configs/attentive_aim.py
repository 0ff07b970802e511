r"""Attentive probes and LoRA on AIM's backbones on ImageNet (arXiv 2401.08541, Tables 7 and 8).

python -m darl_jax.train --config=configs/attentive_aim.py:600m_best --workdir=gs://bucket/run \
    --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/attentive_aim.py:600m_best

The checkpoint is a run of aim_*.py or a backbone of ml-aim (aim_600m_2bimgs_attnprobe_backbone.pth
and the like). A probe reads the mean of six blocks under full attention: the last six, or the best,
which end at block 20 of 24 (600M), 18 of 24 (1B, 3B) or 20 of 32 (7B); the backbone runs no
further. `_grid` tries the paper's range of learning rates and its two decays on the best six side
by side. `_lora` trains adapters of rank 8 of query, value and output projection together with the
probe.

Settled here for LoRA, whose blocks, rates and epochs are not published: the last six blocks, so
that every adapter is trained, and the probe's own recipe.

Expected, from the paper; not reached here: top-1 in %.

backbone    600m    1b      3b      7b
_last       78.5    80.6    82.2    82.4
_best       79.4    82.3    83.3    84.0
_grid       79.4    82.3    83.3    84.0
_lora       81.0    83.6    85.5    86.3
"""

import ml_collections

from darl_jax.config import default_config, recipes

# Size, and the last of the best six blocks, counted from 1.
_BACKBONES = {"600m": ("600M", 20), "1b": ("1B", 18), "3b": ("3B", 18), "7b": ("7B", 20)}
_ENDS = ("_last", "_best", "_grid", "_lora")
WORDS = {f"{name}{end}": (*of, end) for name, of in _BACKBONES.items() for end in _ENDS}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    size, best, end = recipes.entry(WORDS, word)
    config = default_config(objective="probes")
    config.model = recipes.aim(size).model
    recipes.attentive_probes(config)
    config.objective.mask = "full"
    config.objective.blocks = (best if end in ("_best", "_grid") else config.model.depth,)
    if end == "_grid":
        recipes.try_rates_and_decays(config)
    if end == "_lora":
        config.objective.lora.names = ("query", "value", "out")
    return config
