r"""Autoregressive diffusion of sound by a small DiffWave, on 2 CPU cores: 8 bits in two stages.

python -m darl_jax.train --config=configs/ardm_audio_small.py --workdir=runs/ardm_audio \
    --config.data.data_dir=folder_of_wav_files

16-bit mono WAV files of 16 kHz; an eighth of a second is cropped of each, and its samples are
quantized to 256 values.
"""

import ml_collections

from darl_jax.config import default_config, evaluator


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="ardm", model="ardm_diffwave", data="audio")
    config.batch_size = 16
    config.total_epochs, config.total_steps = None, 1500
    config.ema_decay = 0.995
    config.objective.levels = 256
    config.objective.branching = 16
    config.objective.parametrization = "direct"
    config.objective.cross_entropy_weight = 0.0001
    config.model.update(width=64, embedding_width=16, blocks=10, cycle=10, unroll=5)
    config.data.length = 2000
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-3
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 100
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 1000.0
    config.evaluators.validation.every_steps = 500
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=1500)
    config.evaluators.bits.update(examples=64, budgets=(50,))
    config.evaluators.samples = evaluator("integer_samples", every_steps=1500)
    config.evaluators.samples.update(number=4, completed=0, calls=50)
    return config
