r"""A small ViT (width 128, 4 blocks, patches of 4) that generates CIFAR-10 images, on a laptop.

python -m darl_jax.train --config=configs/cifar10_generation.py \
    --workdir=runs/cifar10_generation --config.data.data_dir=~/tensorflow_datasets

The settings of Appendix F at small scale: gamma ~ Beta(1, 1), a denoising decoder that knows gamma,
here of 2 blocks.

Cost: 580 MFLOP an image for forward and backward, 52 TFLOP in all; half an hour on 2 CPU cores.

Expected, from a run of this file: validation loss 0.084; docs/generation.md has samples.
"""

import ml_collections

from darl_jax.config import default_config, recipes


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="diffusion")
    config.batch_size = 128
    config.total_steps = 700
    config.ema_decay = 0.995
    config.model.update(recipes.SMALL, depth=4, unroll=4, patch_size=4)
    config.patch_decoder.kind = "transformer"
    config.patch_decoder.layers = 2
    config.patch_decoder.condition_on_gamma = True
    config.objective.schedule.a = 1.0
    config.objective.schedule.b = 1.0
    config.sampler.name = "dpm_solver"
    config.sampler.steps = 30
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.8, 1.0)
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.checkpoint.every_steps = 200
    config.evaluation.loss_every_steps = 350
    config.evaluation.pictures_every_steps = 700
    config.evaluation.samples_every_steps = 700
    return config
