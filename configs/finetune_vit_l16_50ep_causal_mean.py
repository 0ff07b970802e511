r"""ViT-L/16, fine-tuning with causal attention and the mean over patches (Table 3).

python -m darl_jax.train --config=configs/finetune_vit_l16_50ep_causal_mean.py \
    --workdir=gs://bucket/run --config.init.checkpoint=gs://bucket/pretrained \
    --config.data.data_dir=gs://bucket/tensorflow_datasets

Cost: 0.3693 TFLOP an image for forward and backward, 23.7 EFLOP in all, or at half of the bfloat16
peak 13.3 H100-hours or 48 TPU v4 chip-hours.

Expected, from the paper: 81.5% top-1 from a checkpoint of darl_vit_l16_mse_100ep.py. The fourth
cell of Table 3, full attention and last token, is finetune_vit_l16_50ep.py.
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.fine_tuning("L", epochs=50)
    config.objective.mask = "causal"
    config.objective.pooling = "mean"
    return config
