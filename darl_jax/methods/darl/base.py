"""Base of DARL's two objectives (Section 3): the model, its FLOPs, its predictions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from flax import nnx

from darl_jax.methods.base import ObjectiveConfig
from darl_jax.methods.darl.flops import forward_flops
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.methods.images import PatchMethod
from darl_jax.nn import positions


@dataclasses.dataclass(frozen=True)
class DARLConfig(ObjectiveConfig):
    """Keys of both objectives.

    Attributes:
      patch_decoder: maps the backbone's output to pixels (Table 2).
      two_stream: predict patches from a query stream that knows their positions (Appendix A.5).
    """

    patch_decoder: PatchDecoderConfig = dataclasses.field(default_factory=PatchDecoderConfig)
    two_stream: bool = False


@dataclasses.dataclass(frozen=True)
class DARLMethod(PatchMethod[DARL]):
    """Prediction of each patch from those before it.

    Raises:
      ValueError: the order of patches needs two streams, or the positions do not suit them.
    """

    objective: DARLConfig

    denoising: ClassVar[bool]  # whether the patch decoder takes a corrupted patch too

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.model
        if model.start_token == "none":
            raise ValueError(
                "model.start_token='none' leaves nothing that the first patch could be predicted "
                "from; choose 'learned'"
            )
        if model.order.name == "random" and not self.objective.two_stream:
            raise ValueError(
                "model.order.name='random' needs config.objective.two_stream=True: without a query "
                "a model cannot know which patch comes next"
            )
        if self.objective.two_stream and model.positions not in positions.ABSOLUTE:
            raise ValueError(
                "objective.two_stream=True asks for patches by their positions, which "
                f"config.model.positions={model.positions!r} does not give; choose from "
                f"{list(positions.ABSOLUTE)}"
            )

    @property
    def tokens(self) -> int:
        """Sequence length: the start token and all patches but the last one to predict."""
        return math.prod(self.grid)

    def init(self, rngs: nnx.Rngs) -> DARL:
        return DARL(
            self.model,
            self.objective.patch_decoder,
            denoising=self.denoising,
            two_stream=self.objective.two_stream,
            grid=self.trained_grid,
            channels=self.data.channels,
            rngs=rngs,
        )

    @property
    def draws(self) -> int:
        """Corrupted patches per output of the backbone."""
        return 1

    def flops(self) -> int:
        return 3 * self.forward_flops(self.draws)

    def forward_flops(self, draws: int | Sequence[int]) -> int:
        """FLOPs of an image's forward pass with so many corrupted patches for each output."""
        return forward_flops(
            self.model,
            self.objective.patch_decoder,
            tokens=self.tokens,
            patch_dim=self.patch_dim,
            denoising=self.denoising,
            draws=draws,
            two_stream=self.objective.two_stream,
        )
