r"""A small ViT (width 128, 4 blocks, patches of 4) that generates CIFAR-10 images, on a laptop.

python -m darl_jax.train --config=configs/cifar10_generation.py \
    --workdir=runs/cifar10_generation --config.data.data_dir=~/tensorflow_datasets

The settings of Appendix F at small scale: gamma ~ Beta(1, 1), a denoising decoder that knows gamma,
here of 2 blocks. Half an hour on 2 CPU cores.

Measured with this file: validation loss 0.084; docs/generation.md has samples.
"""

import ml_collections

from darl_jax.config import default_config, evaluator, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="diffusion")
    config.batch_size = 128
    config.total_epochs, config.total_steps = None, 700
    config.ema_decay = 0.995
    config.model.update(recipes.SMALL, depth=4, unroll=4, patch_size=4)
    config.objective.patch_decoder.kind = "transformer"
    config.objective.patch_decoder.layers = 2
    config.objective.patch_decoder.condition_on_gamma = True
    config.objective.schedule.a = 1.0
    config.objective.schedule.b = 1.0
    config.objective.sampler.name = "dpm_solver"
    config.objective.sampler.steps = 30
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.8, 1.0)
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 100
    config.checkpoint.every_steps = 200
    config.evaluators.validation.every_steps = 350
    config.evaluators.pictures.every_steps = 700
    config.evaluators.samples = evaluator("samples", every_steps=700)
    return config
