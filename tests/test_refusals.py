"""Values that no group of a config takes: each is refused by the key, with what is right."""

import math
from typing import Any

import pytest

from darl_jax.evaluators.integer_likelihood import IntegerLikelihoodConfig
from darl_jax.evaluators.integer_samples import IntegerSamplesConfig
from darl_jax.evaluators.knn import KnnConfig
from darl_jax.evaluators.likelihood import LikelihoodConfig
from darl_jax.evaluators.linear_probe import LinearProbeConfig
from darl_jax.methods.ardm.method import ARDMConfig
from darl_jax.methods.ardm.networks.diffwave import DiffWaveConfig
from darl_jax.methods.ardm.networks.transformer import TextTransformerConfig
from darl_jax.methods.ardm.networks.unet import UNetConfig
from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.methods.darl.schedules import ScheduleConfig
from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.methods.transfer.mixing import MixingConfig
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.nn.lora import LoRAConfig
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.vit import ViTConfig

SCHEDULES = "beta, ddpm, cosine, sigmoid, linear"
DIFFUSION_ALONE = "objective.name='diffusion'"
VALUES: list[tuple[Any, dict[str, Any], str]] = [
    (ViTConfig, {"positions": "rope3d"}, "model.positions='rope3d' is unknown.*rope2d"),
    (ViTConfig, {"dtype": "float16"}, "model.dtype='float16' is unknown"),
    (ViTConfig, {"attention": "flash"}, "model.attention='flash' is unknown"),
    (ViTConfig, {"remat": "some"}, "model.remat='some' is unknown"),
    (ViTConfig, {"depth": 0}, "model.depth=0 must be at least 1"),
    (ViTConfig, {"width": 32, "num_heads": 3}, "width=32 must be a multiple of model.num_heads=3"),
    (ViTConfig, {"width": 36, "num_heads": 2}, "multiple of 4, not 18"),
    (ViTConfig, {"width": 6, "num_heads": 2, "positions": "rope1d"}, "multiple of 2, not 3"),
    (OrderConfig, {"name": "zigzag"}, "model.order.name='zigzag' is unknown; choose from"),
    (OrderConfig, {"block": 0}, "model.order.block=0 must be at least 1"),
    (OrderConfig, {"seed": -1}, "model.order.seed=-1 must not be negative"),
    (PatchDecoderConfig, {"kind": "linear"}, "patch_decoder.kind='linear' is unknown"),
    (PatchDecoderConfig, {"layers": -1}, "patch_decoder.layers=-1 must not be negative"),
    (MSEConfig, {"patch_decoder": PatchDecoderConfig("transformer", 1)}, DIFFUSION_ALONE),
    (MSEConfig, {"patch_decoder": PatchDecoderConfig("mlp", 0, True)}, DIFFUSION_ALONE),
    (DiffusionConfig, {"prediction": "v"}, r"objective\.prediction='v' is unknown.*x0.*epsilon"),
    (DiffusionConfig, {"draws": 0}, r"objective\.draws=0 must be at least 1"),
    (DiffusionConfig, {"schedule": ScheduleConfig("cosin")}, rf"\.name 'cosin' .* {SCHEDULES}"),
    (DiffusionConfig, {"schedule": ScheduleConfig(a=0.0)}, r"schedule\.a must be a positive"),
    (DiffusionConfig, {"schedule": ScheduleConfig(b=math.inf)}, r"schedule\.b must be a positive"),
    (SamplerConfig, {"steps": 0}, r"objective\.sampler\.steps=0 must be at least 1"),
    (SamplerConfig, {"last_steps": 0}, r"objective\.sampler\.last_steps=0 must be at least 1"),
    (SamplerConfig, {"name": "euler"}, r"sampler\.name='euler' is unknown; choose from"),
    (SamplerConfig, {"variance": "learned"}, r"sampler\.variance='learned' is unknown"),
    (SamplerConfig, {"eta": 0.5}, r"sampler\.eta=0\.5 is DDIM's; its name is 'ddpm'"),
    (SamplerConfig, {"name": "ddim", "eta": 1.5}, r"sampler\.eta=1\.5 must be in \[0, 1\]"),
    (SamplerConfig, {"name": "ddim", "variance": "analytic"}, "variance='analytic' is DDPM's"),
    (SamplerConfig, {"temperature": -1.0}, r"sampler\.temperature=-1\.0 must not be negative"),
    (ClassificationConfig, {"mask": "prefix"}, "objective.mask='prefix'"),
    (ClassificationConfig, {"pooling": "max"}, "objective.pooling='max'"),
    (ClassificationConfig, {"label_smoothing": 1.0}, r"objective.label_smoothing=1\.0"),
    (ClassificationConfig, {"num_classes": 1}, "objective.num_classes=1"),
    (
        ClassificationConfig,
        {"num_classes": 3, "class_names": ("a", "b")},
        "class_names has 2 names and .*num_classes is 3",
    ),
    (MixingConfig, {"mixup": -0.1}, r"^objective\.mixing\.mixup is"),
    (MixingConfig, {"cutmix": math.nan}, r"^objective\.mixing\.cutmix is"),
    (MixingConfig, {"probability": 1.1}, r"^objective\.mixing\.probability is"),
    (MixingConfig, {"switch_probability": -1.0}, r"^objective\.mixing\.switch_probability is"),
    (MixingConfig, {"erasing_probability": 2.0}, r"^objective\.mixing\.erasing_probability is"),
    (MixingConfig, {"erasing_area": (0.5, 0.1)}, r"^objective\.mixing\.erasing_area is"),
    (MixingConfig, {"erasing_area": (0.5, 1.0)}, r"^objective\.mixing\.erasing_area is"),
    (MixingConfig, {"erasing_aspect": (0.0, 1.0)}, r"^objective\.mixing\.erasing_aspect is"),
    (ARDMConfig, {"levels": 1}, r"objective\.levels=1 must be 0, or at least 2"),
    (ARDMConfig, {"cross_entropy_weight": -1.0}, r"cross_entropy_weight=-1\.0 must not be"),
    (ARDMConfig, {"mixtures": 5, "branching": 2}, r"objective\.mixtures=5 must be 0"),
    (UNetConfig, {"dtype": "float16"}, r"model\.dtype='float16' is unknown"),
    (UNetConfig, {"groups": 7}, r"model\.width=256 must be a multiple of model\.groups=7"),
    (UNetConfig, {"embedding_width": 256}, r"embedding_width=256 must be below model\.width=256"),
    (UNetConfig, {"dropout": 1.0}, r"model\.dropout=1\.0 must be in"),
    (DiffWaveConfig, {"cycle": 0}, r"model\.cycle=0 must be at least 1"),
    (TextTransformerConfig, {"num_heads": 5}, r"must be a multiple of model\.num_heads=5"),
    (IntegerLikelihoodConfig, {"draws": 0}, "^draws=0 must be"),
    (IntegerSamplesConfig, {"number": 0}, "^number=0 must be"),
    (ProbesConfig, {"kind": "mlp"}, r"objective\.kind="),
    (ProbesConfig, {"pooling": "max"}, r"objective\.pooling="),
    (ProbesConfig, {"average_blocks": 0}, r"objective\.average_blocks="),
    (ProbesConfig, {"label_smoothing": 1.0}, r"objective\.label_smoothing="),
    (ProbesConfig, {"num_classes": 1}, r"objective\.num_classes="),
    (ProbesConfig, {"blocks": (0, 1)}, r"objective\.blocks=\(0, 1\) must rise, from 1"),
    (ProbesConfig, {"blocks": (3, 2)}, r"objective\.blocks="),
    (ProbesConfig, {"learning_rates": (1e-3, 1e-3)}, r"objective\.learning_rates="),
    (ProbesConfig, {"weight_decays": (-0.1,)}, r"objective\.weight_decays="),
    (LoRAConfig, {"names": ("query", "query")}, r"^objective\.lora\.names="),
    (LoRAConfig, {"rank": 0}, r"^objective\.lora\.rank=0"),
    (LoRAConfig, {"alpha": 0.0}, r"^objective\.lora\.alpha=0"),
    (KnnConfig, {"neighbors": 0}, "^neighbors="),
    (KnnConfig, {"max_bank": 0}, "^max_bank="),
    (KnnConfig, {"max_bank": 5}, "^max_bank="),
    (KnnConfig, {"temperature": 0.0}, "^temperature="),
    (KnnConfig, {"pooling": "max"}, "^pooling="),
    (LikelihoodConfig, {"steps": 1}, "^steps=1 must be"),
    (LikelihoodConfig, {"draws": 0}, "^draws=0 must be"),
    (LikelihoodConfig, {"levels": 2}, "^levels=2 must be"),
    (LikelihoodConfig, {"train_images": 0}, "^train_images=0 must be"),
    (LikelihoodConfig, {"images": -1}, "^images=-1 must be"),
    (LinearProbeConfig, {"labels_per_class": 0}, "labels_per_class=0"),
    (LinearProbeConfig, {"seeds": 0}, "seeds=0"),
    (LinearProbeConfig, {"pooling": "max"}, "pooling='max' is unknown"),
    (LinearProbeConfig, {"relative_depth": 0.0}, r"relative_depth=0\.0 must be in \(0, 1\]"),
    (LinearProbeConfig, {"l2": 0.0}, r"l2=0\.0 must be positive"),
    (LinearProbeConfig, {"baselines": ("pixel",)}, "baselines has 'pixel'"),
]


@pytest.mark.parametrize(("group", "values", "message"), VALUES)
def test_value_out_of_range_is_refused_by_its_key(group, values, message):
    with pytest.raises(ValueError, match=message):
        group(**values)
