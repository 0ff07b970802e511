"""Evaluators: one file each, all behind the contract in base.py."""

from darl_jax.evaluators.base import EvaluatorConfig
from darl_jax.evaluators.integer_likelihood import IntegerLikelihoodConfig
from darl_jax.evaluators.integer_samples import IntegerSamplesConfig
from darl_jax.evaluators.knn import KnnConfig
from darl_jax.evaluators.likelihood import LikelihoodConfig
from darl_jax.evaluators.linear_probe import LinearProbeConfig
from darl_jax.evaluators.pictures import PicturesConfig
from darl_jax.evaluators.reconstructions import ReconstructionsConfig
from darl_jax.evaluators.samples import SamplesConfig
from darl_jax.evaluators.validation_loss import ValidationLossConfig

# config.evaluators.<name>.kind -> config of the entry
EVALUATORS: dict[str, type[EvaluatorConfig]] = {
    "validation_loss": ValidationLossConfig,
    "pictures": PicturesConfig,
    "reconstructions": ReconstructionsConfig,
    "samples": SamplesConfig,
    "linear_probe": LinearProbeConfig,
    "knn": KnnConfig,
    "likelihood": LikelihoodConfig,
    "integer_likelihood": IntegerLikelihoodConfig,
    "integer_samples": IntegerSamplesConfig,
}

__all__ = ["EVALUATORS", "EvaluatorConfig"]
