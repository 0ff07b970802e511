r"""ViT-L/8 at 64 px for generation (Appendix F): 8-block denoising decoder, gamma ~ Beta(1, 1).

python -m darl_jax.train --config=configs/darl_vit_l8_64px_generation.py \
    --workdir=gs://bucket/run --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/darl_vit_l8_64px_generation.py

Expected, from the paper; not reached here: the samples of Figures 7 and 15. It prints no number
for this model.
"""

import ml_collections

from darl_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config(objective="diffusion", size="L")
    config.total_epochs = 800.0
    config.model.patch_size = 8
    config.objective.patch_decoder.kind = "transformer"
    config.objective.patch_decoder.layers = 8
    config.objective.patch_decoder.condition_on_gamma = True
    config.objective.schedule.a = 1.0
    config.objective.schedule.b = 1.0
    config.data.dataset = "imagenet2012"
    config.data.image_size = 64
    return config
