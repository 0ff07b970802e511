r"""AIM-7B: autoregressive pre-training of a ViT of 6.5 billion parameters (arXiv 2401.08541).

python -m darl_jax.train --config=configs/aim_7b.py --workdir=gs://bucket/run \
    --config.data.data_dir=gs://bucket/tensorflow_datasets
python -m darl_jax.cost --config=configs/aim_7b.py

5 billion images. The paper takes 80% of them from DFN-2B, which is not public, and 20% from
ImageNet-1k; here they are ImageNet-1k's unless --config.data.dataset names others.
`python -m darl_jax.plan --config=FILE --topology=v5p:4x8x8` prints whether it fits there.

Expected, from the paper; not reached here: ImageNet top-1 in % of an attentive probe on the frozen
backbone, from the last and from the best six blocks (Table 7), and with LoRA of rank 8 (Table 8).

last    best    LoRA
82.4    84.0    86.3
"""

import ml_collections

from darl_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.aim("7B")
