r"""Autoregressive diffusion of scikit-learn's 8x8 digits of 17 gray levels: nothing to download.

python -m darl_jax.train --config=configs/ardm_digits.py:oa --workdir=runs/ardm_digits
python -m darl_jax.train --config=configs/ardm_digits.py:upscale_2 --workdir=runs/ardm_digits_2

A U-Net of 64 channels and 4 blocks, on 2 CPU cores.

word                  calls in all
oa (default)          64
upscale_2             5 x 64
upscale_2_direct      5 x 64, a logit for each child
upscale_4             3 x 64
"""

from typing import Any

import ml_collections

from darl_jax.config import default_config, evaluator, recipes

WORDS: dict[str, dict[str, Any]] = {
    "oa": {},
    "upscale_2": {"objective.branching": 2},
    "upscale_2_direct": {"objective.branching": 2, "objective.parametrization": "direct"},
    "upscale_4": {"objective.branching": 4},
}


def get_config(word: str = "oa") -> ml_collections.ConfigDict:
    config = default_config(objective="ardm", model="ardm_unet")
    config.batch_size = 64
    config.total_epochs, config.total_steps = None, 3000
    config.ema_decay = 0.998
    config.objective.levels = 17
    config.update_from_flattened_dict(recipes.entry(WORDS, word))
    config.model.update(width=64, embedding_width=16, blocks=4, groups=8, unroll=5)
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.mean, config.data.std = (0.305,), (0.376,)
    config.data.crop_scale, config.data.crop_ratio = (1.0, 1.0), (1.0, 1.0)
    config.data.flip = False
    config.data.eval_crop = 1.0
    config.data.in_memory = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.base_learning_rate = None
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 100.0
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 100
    config.checkpoint.every_steps = 500
    config.evaluators.validation.every_steps = 500
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=1500)
    config.evaluators.bits.update(draws=4, budgets=(4, 8, 16, 32))
    config.evaluators.samples = evaluator("integer_samples", every_steps=1500)
    return config
