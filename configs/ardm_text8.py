r"""Autoregressive diffusion on text8 (arXiv 2110.02037): a Transformer of 85 million parameters.

python -m darl_jax.train --config=configs/ardm_text8.py --workdir=runs/ardm_text8 \
    --config.data.path=text8

The paper's bits a character, not reached here: 1.43 with 250 calls, 1.51 with 20; a week on 4 TPUs
v4. Of its 28 classes one never occurs. The paper averages parameters by 0.995, its code by 0.999,
which is taken; it decays all parameters, this file the kernels.
"""

import ml_collections

from darl_jax.config import default_config, evaluator


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="ardm", model="ardm_transformer", data="text")
    config.batch_size = 512
    config.total_epochs, config.total_steps = None, 3_000_000
    config.ema_decay = 0.999
    config.objective.levels = 28
    config.objective.cross_entropy_weight = 0.0001
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 5e-4
    config.optimizer.final_learning_rate = 5e-4
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 5000
    config.optimizer.weight_decay = 0.001
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 0.25
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=50_000)
    config.evaluators.bits.budgets = (20, 50, 100)
    config.evaluators.samples = evaluator("integer_samples", every_steps=50_000)
    config.evaluators.samples.calls = 50
    return config
