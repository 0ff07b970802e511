"""Parts that config files share: the paper's recipes for transfer, CIFAR-10 on a CPU, words.

Pre-training (Table 8) is `config.default_config`. The recipes are for ImageNet. Those that start
from a checkpoint need `config.init.checkpoint`; an empty one (`--config.init.checkpoint=`) starts
the same recipe from nothing.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from darl_jax.config import default_config

# Table 9: (learning rate, drop path) by size and epochs.
_FINE_TUNING = {
    ("B", 90): (1e-3, 0.0),
    ("L", 50): (1e-3, 0.0),
    ("L", 90): (1e-3, 0.1),
    ("H", 90): (3e-3, 0.2),
}

# Models that 2 CPU cores train in minutes, for `config.model.update`.
_ON_A_CPU = {"dtype": "float32"}
SMALL = {"width": 128, "depth": 6, "num_heads": 4, "mlp_dim": 512, "unroll": 6} | _ON_A_CPU
TINY = {"width": 64, "depth": 4, "num_heads": 2, "mlp_dim": 256, "unroll": 4} | _ON_A_CPU

# NEPA's backbone beside its size and patches: one scale of RoPE's coordinates a step, in training.
NEPA: dict[str, Any] = {
    "positions": "rope_dinov3",
    "rope_max_wavelength": 100.0,
    "rope_rescale": 2.0,
    "norm_epsilon": 1e-12,
    "qk_norm": "plain",
    "layer_scale": 1e-5,
    "initialization": "normal",
}
# NEPA's fine-tuning by size: (base learning rate, layer decay, warm-up epochs, drop path, crop).
_NEPA_FINE_TUNING = {
    "B": (1.5e-3, 0.65, 20.0, 0.1, 0.875),
    "L": (1e-3, 0.75, 30.0, 0.2, 0.95),
}
# AIM, Table 1: (width, depth, heads, steps).
_AIM_SIZES = {
    "600M": (1536, 24, 12, 500_000),
    "1B": (2048, 24, 16, 1_200_000),
    "3B": (3072, 24, 24, 1_200_000),
    "7B": (4096, 32, 32, 1_200_000),
}

_ORDER, _BLOCK, _AT_256 = "model.order.name", "model.order.block", {"data.image_size": 256}
# Table 7, Figures 11 and 13: word -> keys.
PATCH_ORDERS: dict[str, dict[str, Any]] = {
    "raster": _AT_256,
    "nested_raster_2": {_ORDER: "nested_raster", _BLOCK: 2} | _AT_256,
    "nested_raster_4": {_ORDER: "nested_raster", _BLOCK: 4} | _AT_256,
    "nested_raster_8": {_ORDER: "nested_raster", _BLOCK: 8} | _AT_256,
    "round_robin_2": {_ORDER: "round_robin", _BLOCK: 2} | _AT_256,
    "round_robin_4": {_ORDER: "round_robin", _BLOCK: 4} | _AT_256,
    "round_robin_8": {_ORDER: "round_robin", _BLOCK: 8} | _AT_256,
}

Entry = TypeVar("Entry")


def entry(words: Mapping[str, Entry], word: str) -> Entry:
    """The entry of a config file's table for the word of `--config=FILE.py:WORD`.

    Raises:
      ValueError: it has no such word; the message lists its words.
    """
    if word not in words:
        problem = f"there is no word {word!r}" if word else "a word is missing"
        raise ValueError(f"{problem}: give --config=FILE.py:WORD with one of {', '.join(words)}")
    return words[word]


def use_cifar10(config: ml_collections.ConfigDict) -> None:
    """Whole images of CIFAR-10, held in memory and standardized by its own statistics."""
    config.data.dataset = "cifar10"
    config.data.validation_split = "test"
    config.data.image_size = 32
    config.data.eval_crop = 1.0
    config.data.in_memory = True
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)


def nepa(size: str) -> ml_collections.ConfigDict:
    """NEPA's pre-training (arXiv 2512.16922; github.com/SihanXU/nepa): 1600 epochs at 224 pixels.

    Settled here: images are resized as everywhere in this project, where NEPA's crops are bilinear.

    Args:
      size: 'B' or 'L'.
    """
    config = default_config(objective="next_embedding", size=size)
    _use_nepa(config, size)
    config.total_epochs = 1600.0
    config.ema_decay = 0.9999
    config.data.crop_scale = (0.08, 1.0)
    config.optimizer.base_learning_rate = 3e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = 40.0  # 2.5% of the steps
    return config


def nepa_fine_tuning(size: str) -> ml_collections.ConfigDict:
    """NEPA's fine-tuning (the same source): full attention, mean pooling, frozen patch embedding.

    Not as in the source, where the last block has no layer decay (here one factor), lower layers
    warm up for longer, head and final norm have a rate of their own (1e-3), a LayerNorm follows the
    mean, and accuracies are those of the best epoch on the validation split.

    Args:
      size: 'B' or 'L'.
    """
    rate, decay, warmup, drop_path, crop = _NEPA_FINE_TUNING[size]
    config = _classification(size)
    _use_nepa(config, size)
    config.init.checkpoint = config_dict.placeholder(str)
    config.batch_size = 1024
    config.total_epochs = 100.0
    config.ema_decay = 0.9999
    config.model.drop_path = drop_path
    config.data.eval_crop = crop
    config.objective.mask = "full"
    config.objective.pooling = "mean"
    config.objective.freeze_patch_embedding = True
    config.objective.mixing.erasing_probability = 0.25
    config.optimizer.base_learning_rate = rate
    config.optimizer.layer_decay = decay
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = warmup
    return config


def _use_nepa(config: ml_collections.ConfigDict, size: str) -> None:
    """NEPA's backbone and pixels; a ViT-L's norms of queries and keys have scales."""
    config.model.update(NEPA, patch_size=14)
    if size == "L":
        config.model.qk_norm = "scale"
    config.data.dataset = "imagenet2012"
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)


def aim(size: str) -> ml_collections.ConfigDict:
    """AIM's pre-training (arXiv 2401.08541, Section 3 and Table 1).

    Settled here: the epsilon of norms is 1e-6, as in Apple's published models (ml-l3m trains with
    1e-5); no color jitter, which ml-l3m adds and the paper does not mention.

    Args:
      size: '600M', '1B', '3B' or '7B'.
    """
    width, depth, heads, steps = _AIM_SIZES[size]
    config = default_config(objective="aim")
    config.batch_size = 4096
    config.total_epochs, config.total_steps = None, steps
    config.model.update(width=width, depth=depth, num_heads=heads, mlp_dim=4 * width, patch_size=14)
    config.data.dataset = "imagenet2012"
    config.data.crop_scale = (0.4, 1.0)
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-3
    config.optimizer.initial_learning_rate = 1e-6
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, steps // 40
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    return config


def attentive_probes(config: ml_collections.ConfigDict) -> None:
    """AIM's attentive probes (arXiv 2401.08541, Section 4 and Appendix D): the mean of six blocks.

    Settled here: 1e-3 and 0.1 of the rates and decays that the paper tries.
    """
    config.init.checkpoint = config_dict.placeholder(str)
    config.data.dataset = "imagenet2012"
    config.data.crop_scale = (0.08, 1.0)
    config.data.randaugment.magnitude = 9.0
    config.objective.kind = "attentive"
    config.objective.average_blocks = 6
    config.objective.classifier_bias = False
    config.batch_size = 1024
    config.total_epochs = 100.0
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 3.0
    config.optimizer.warmup_epochs = 5.0


def try_rates_and_decays(config: ml_collections.ConfigDict) -> None:
    """AIM's range of learning rates and its two decays, side by side."""
    config.objective.learning_rates = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
    config.objective.weight_decays = (0.05, 0.1)


def fine_tuning(size: str, epochs: int = 90) -> ml_collections.ConfigDict:
    """Table 9: from a checkpoint, full attention, last token.

    Settled here: 5 warm-up epochs (the table's "4 5" is garbled); the rates are absolute, not for a
    batch of 256; the crop takes 8 to 100% of the area, as in MAE's fine-tuning.
    """
    config = _classification(size)
    config.init.checkpoint = config_dict.placeholder(str)
    config.total_epochs = float(epochs)
    config.objective.mask = "full"
    config.objective.pooling = "last"
    config.optimizer.base_learning_rate = None
    config.optimizer.learning_rate, config.model.drop_path = _FINE_TUNING[size, epochs]
    config.optimizer.layer_decay = 0.75
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = 5.0
    return config


def linear_probes(size: str) -> ml_collections.ConfigDict:
    """Table 13: linear probes of every block's output, side by side, on a frozen backbone."""
    config = default_config(objective="probes", size=size, optimizer="lars")
    config.init.checkpoint = config_dict.placeholder(str)
    config.data.dataset = "imagenet2012"
    config.data.crop_scale = (0.08, 1.0)
    config.batch_size = 16384
    config.total_epochs = 90.0
    config.objective.mask = "causal"
    config.objective.pooling = "mean"
    config.objective.label_smoothing = 0.1
    config.optimizer.base_learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 10.0
    return config


def supervised(size: str) -> ml_collections.ConfigDict:
    """Table 10: 200 epochs from nothing, mean pooling; attention full or causal (Table 1)."""
    config = _classification(size)
    config.total_epochs = 200.0
    config.model.drop_path = 0.2
    config.objective.pooling = "mean"
    config.optimizer.base_learning_rate = 1e-4
    config.optimizer.weight_decay = 0.3
    config.optimizer.warmup_epochs = 20.0
    return config


def _classification(size: str) -> ml_collections.ConfigDict:
    """The part that Tables 9 and 10 share."""
    config = default_config(objective="classification", size=size)
    config.batch_size = 4096
    config.data.dataset = "imagenet2012"
    config.data.crop_scale = (0.08, 1.0)
    config.data.randaugment.magnitude = 9.0
    config.data.randaugment.std = 0.5
    config.objective.label_smoothing = 0.1
    config.objective.mixing.mixup = 0.8
    config.objective.mixing.cutmix = 1.0
    return config
