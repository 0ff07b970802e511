r"""Autoregressive diffusion on enwik8's bytes, as in the code of arXiv 2110.02037.

python -m darl_jax.train --config=configs/ardm_enwik8.py --workdir=runs/ardm_enwik8 \
    --config.data.path=enwik8

The Transformer of text8 with 257 classes, of which one never occurs. The paper has no number.
"""

import pathlib

import ml_collections

from darl_jax.config import from_file


def get_config() -> ml_collections.ConfigDict:
    config = from_file(str(pathlib.Path(__file__).with_name("ardm_text8.py")))
    config.data.alphabet = "bytes"
    config.objective.levels = 257
    return config
