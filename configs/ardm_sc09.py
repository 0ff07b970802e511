r"""Autoregressive diffusion on spoken digits (SC09, arXiv 2110.02037): a DiffWave of 34 million.

python -m darl_jax.train --config=configs/ardm_sc09.py:upscale_256 --workdir=runs/ardm_sc09 \
    --config.data.data_dir=speech_commands_v0.02

The folder is the archive of Speech Commands, with its two lists; a second of sound is 16,000 steps.
The paper's bits/dim (table 4), not reached here; four days. It warms up over 15,000 steps, its code
not at all, which is taken.

word                    bits/dim   calls
oa                      7.93       16,000, mixtures of 30 logistics
upscale_256 (default)   6.36       2 x 16,000
upscale_16              6.30       4 x 16,000
upscale_4               6.29       8 x 16,000
upscale_2               6.29       16 x 16,000
"""

from typing import Any

import ml_collections

from darl_jax.config import default_config, evaluator, recipes

_DIRECT = {"objective.parametrization": "direct"}
WORDS: dict[str, dict[str, Any]] = {
    "oa": {"objective.mixtures": 30},
    "upscale_256": {"objective.branching": 256} | _DIRECT,
    "upscale_16": {"objective.branching": 16} | _DIRECT,
    "upscale_4": {"objective.branching": 4} | _DIRECT,
    "upscale_2": {"objective.branching": 2} | _DIRECT,
}


def get_config(word: str = "upscale_256") -> ml_collections.ConfigDict:
    config = default_config(objective="ardm", model="ardm_diffwave", data="audio")
    config.batch_size = 256
    config.total_epochs, config.total_steps = None, 1_000_000
    config.ema_decay = 0.995
    config.objective.cross_entropy_weight = 0.0001
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-4
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 1000.0
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=20_000)
    config.evaluators.bits.budgets = (50, 100)
    config.evaluators.samples = evaluator("integer_samples", every_steps=20_000)
    config.evaluators.samples.calls = 50
    config.update_from_flattened_dict(recipes.entry(WORDS, word))
    return config
