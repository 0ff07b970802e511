"""A very small ViT (width 128, 4 blocks) on scikit-learn's 8x8 digits: nothing to download.

python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits

Diffusion with the settings of generation (Appendix F): gamma ~ Beta(1, 1), a denoising decoder that
knows gamma, here of 2 blocks. It ends with samples. Appendix F's sampler takes 1000 steps for a
patch; here it is the second-order solver with 30.

Cost: 139 MFLOP an image for forward and backward, 17.7 TFLOP in all; minutes on 2 CPU cores.

Expected, from a run of this file: validation loss 0.123; linear probe with 10 labels a class 0.698
+- 0.026; docs/generation.md has what its samples are like.
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="diffusion")
    config.batch_size = 64
    config.total_steps = 2000
    config.ema_decay = 0.998
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.mlp_dim = 512
    config.model.patch_size = 2
    config.model.dtype = "float32"
    config.model.unroll = 4
    config.patch_decoder.kind = "transformer"
    config.patch_decoder.layers = 2
    config.patch_decoder.condition_on_gamma = True
    config.objective.schedule.a = 1.0
    config.objective.schedule.b = 1.0
    config.sampler.name = "dpm_solver"
    config.sampler.steps = 30
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.crop_scale = (0.9, 1.0)
    config.data.flip = False
    config.data.eval_crop = 1.0
    config.data.in_memory = True
    config.data.mean = (0.305,)
    config.data.std = (0.376,)
    config.optimizer.base_learning_rate = 4e-3
    config.optimizer.weight_decay = 0.2
    config.optimizer.warmup_steps = 50
    config.checkpoint.every_steps = 500
    config.evaluation.loss_every_steps = 500
    config.evaluation.pictures_every_steps = 1000
    config.evaluation.samples_every_steps = 1000
    config.evaluation.probe_every_steps = 1000
    return config
