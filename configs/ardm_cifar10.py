r"""Autoregressive diffusion on CIFAR-10 (arXiv 2110.02037): a U-Net of 141 million parameters.

python -m darl_jax.train --config=configs/ardm_cifar10.py:oa --workdir=runs/ardm_cifar10 \
    --config.data.data_dir=~/tensorflow_datasets

The paper's bits/dim (tables 2 and 5), none of which was reached here; two weeks on 8 TPUs v4. They
are with augmentation by quarter turns, which this file, like the published one, does not have.

word                  bits/dim   calls
oa (default)          2.69       3072
upscale_2             2.67       8 x 3072
upscale_4             2.64       4 x 3072
upscale_4_direct      not given  4 x 3072, a logit for each child
upscale_16            2.67       2 x 3072
small                 not run    3072; a U-Net of 64 channels for 2 CPU cores and an hour
"""

from typing import Any

import ml_collections

from darl_jax.config import default_config, evaluator, recipes

WORDS: dict[str, dict[str, Any]] = {
    "oa": {},
    "upscale_2": {"objective.branching": 2},
    "upscale_4": {"objective.branching": 4},
    "upscale_4_direct": {"objective.branching": 4, "objective.parametrization": "direct"},
    "upscale_16": {"objective.branching": 16},
    "small": {
        "batch_size": 32,
        "total_epochs": None,
        "total_steps": 1000,
        "ema_decay": 0.995,
        "model.width": 64,
        "model.embedding_width": 16,
        "model.blocks": 2,
        "model.resolutions": 3,
        "model.attention_sizes": (8,),
        "model.groups": 8,
        "model.unroll": 3,
        "optimizer.learning_rate": 1e-3,
    },
}


def get_config(word: str = "oa") -> ml_collections.ConfigDict:
    config = default_config(objective="ardm")
    config.batch_size = 128
    config.total_epochs = 3000.0
    config.ema_decay = 0.9999
    recipes.use_cifar10(config)
    config.data.flip = False
    config.data.crop_scale, config.data.crop_ratio = (1.0, 1.0), (1.0, 1.0)
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-4
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 100.0
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=20_000)
    config.evaluators.bits.budgets = (50, 100)
    config.evaluators.samples = evaluator("integer_samples", every_steps=20_000)
    config.evaluators.samples.calls = 50
    config.update_from_flattened_dict(recipes.entry(WORDS, word))
    if word == "small":
        config.evaluators.validation.every_steps = 500
        config.evaluators.bits.update(examples=256, every_steps=1000)
        config.evaluators.samples.every_steps = 1000
    # Constant, as published.
    config.optimizer.final_learning_rate = config.optimizer.learning_rate
    return config
