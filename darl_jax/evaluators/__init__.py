"""Questions asked of a model while it trains: one file for each."""

from darl_jax.evaluators.base import Evaluator
from darl_jax.evaluators.linear_probe import LinearProbe, ProbeConfig
from darl_jax.evaluators.pictures import Pictures
from darl_jax.evaluators.validation_loss import ValidationLoss

__all__ = ["Evaluator", "LinearProbe", "Pictures", "ProbeConfig", "ValidationLoss"]
