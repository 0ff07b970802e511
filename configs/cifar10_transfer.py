r"""Small ViTs on CIFAR-10, fine-tuned, probed or trained with labels, in minutes on 2 CPU cores.

python -m darl_jax.train --config=configs/cifar10_transfer.py:finetune \
    --workdir=runs/cifar10_finetuned --config.data.data_dir=~/tensorflow_datasets \
    --config.init.checkpoint=runs/cifar10_pretrained
python -m darl_jax.cost --config=configs/cifar10_transfer.py:finetune

An empty checkpoint (--config.init.checkpoint=) trains the same from nothing. After `linear` and
`attentive`, Figure 8b in small:

python -m darl_jax.figures.depth runs/cifar10_linear runs/cifar10_attentive --output=depth.png

word          from a checkpoint of             minutes
finetune      cifar10_pretrain.py:transfer     3.5      600 steps, causal attention
linear        cifar10_pretrain.py:transfer     4        linear probes and k-NN of every block
attentive     cifar10_pretrain.py:transfer     4        attentive probes of every block
grid          cifar10_pretrain.py:transfer              six attentive probes of the second block
mae           cifar10_pretrain.py:mae                  600 steps, full attention, a new norm
mae_linear    cifar10_pretrain.py:mae                  linear probes of every block
tiny          cifar10_pretrain.py:tiny_mse     1        150 steps, full attention
supervised    nothing                          1        200 steps, full attention

Measured with this file; docs/transfer.md has the rest:

finetune      accuracy 0.539 +- 0.013 (three seeds), 0.465 +- 0.004 from nothing
linear        accuracy 0.4155 at the third of six blocks, k-NN 0.430
attentive     accuracy 0.481 at the second of six blocks
"""

import ml_collections
from ml_collections import config_dict

from darl_jax.config import default_config, evaluator, recipes


def _finetune() -> ml_collections.ConfigDict:
    config = default_config(objective="classification")
    config.init.checkpoint = config_dict.placeholder(str)
    config.batch_size = 128
    config.total_epochs, config.total_steps = None, 600
    config.checkpoint.every_steps = 600
    config.model.update(recipes.SMALL, patch_size=8)
    config.objective.mask = "causal"
    config.objective.pooling = "mean"
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 1e-3
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 50
    config.evaluators.validation.every_steps = 600
    return config


def _mae() -> ml_collections.ConfigDict:
    config = _finetune()
    config.model.patch_size = 4
    config.model.positions = "learnable"
    config.objective.mask = "full"
    config.objective.norm_after_pooling = True
    config.optimizer.b2 = 0.999
    config.optimizer.layer_decay = 0.75
    return config


def _mae_linear() -> ml_collections.ConfigDict:
    config = _linear()
    config.model.patch_size = 4
    config.model.positions = "sincos2d"
    config.objective.mask = "full"
    config.objective.pooling = "start"
    config.objective.final_norm = True
    config.objective.label_smoothing = 0.0
    config.evaluators.knn.mask = "full"
    return config


def _tiny() -> ml_collections.ConfigDict:
    config = _supervised()
    config.init.checkpoint = config_dict.placeholder(str)
    config.total_steps = 150
    config.checkpoint.every_steps = 150
    config.evaluators.validation.every_steps = 150
    return config


def _supervised() -> ml_collections.ConfigDict:
    config = default_config(objective="classification")
    config.batch_size = 128
    config.total_epochs, config.total_steps = None, 200
    config.checkpoint.every_steps = 200
    config.model.update(recipes.TINY, patch_size=8)
    config.objective.pooling = "mean"
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 2e-3
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = None, 25
    config.evaluators.validation.every_steps = 200
    return config


def _linear() -> ml_collections.ConfigDict:
    config = default_config(objective="probes", optimizer="lars")
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 3.0
    config.evaluators.knn = evaluator("knn", every_steps=1000)
    return _probes(config)


def _attentive() -> ml_collections.ConfigDict:
    config = default_config(objective="probes")
    config.objective.kind = "attentive"
    config.optimizer.base_learning_rate, config.optimizer.learning_rate = None, 2e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 3.0
    return _probes(config)


def _grid() -> ml_collections.ConfigDict:
    config = _attentive()
    config.objective.blocks = (2,)
    config.objective.learning_rates = (5e-4, 2e-3, 8e-3)
    config.objective.weight_decays = (0.05, 0.1)
    return config


def _probes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.init.checkpoint = config_dict.placeholder(str)
    config.batch_size = 512
    config.total_epochs = 4.0
    config.checkpoint.every_steps = 200
    config.model.update(recipes.SMALL, patch_size=8)
    config.optimizer.warmup_epochs = 0.4
    config.evaluators.validation.every_steps = 1000
    return config


WORDS = {
    "finetune": _finetune,
    "linear": _linear,
    "attentive": _attentive,
    "grid": _grid,
    "mae": _mae,
    "mae_linear": _mae_linear,
    "tiny": _tiny,
    "supervised": _supervised,
}


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = recipes.entry(WORDS, word)()
    recipes.use_cifar10(config)
    config.data.crop_scale = (0.6, 1.0)
    return config
