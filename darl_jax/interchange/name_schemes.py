"""Backbones of other projects: what their files are recognized by, hold, and leave unsaid."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from darl_jax.interchange.described import PLAIN_VIT
from darl_jax.interchange.name_tables import Entry, of_model
from darl_jax.interchange.names import (
    ModelShape,
    Tensors,
    check_arrays,
    expected_shapes,
    from_torch,
    to_torch,
)
from darl_jax.nn.positions import sincos_2d

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# Other projects compute angles in float32, and so do not have our positions to the last bit.
SINCOS_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """An imported model."""

    params: dict[str, Any]  # nested
    model: dict[str, Any]  # the known keys of config.model
    image_size: int | None  # rows and columns of the images on whose grid positions are counted
    title: str  # the family, in words
    left_out: list[str]  # names of arrays that were not imported
    standardized: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std
    notes: str = ""  # what else a user must know


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Names of one project for the arrays of one family of backbones.

    Attributes:
      title: the family and the project, in words.
      entries: the arrays.
      recognized: names that a file has, by which it is recognized.
      lacking: names that it does not have, by which it is told from others.
      keys: of config.model, with the values that the family has.
      optional: keys whose value depends on an array (of ours): the array, and the values with it
        and without it.
      standardized: mean and std of the images.
      notes: what else a user must know.
      head_dim: channels of a head, the same for all sizes.
      image_size: of the published models (with patches of 14), where the arrays do not tell it.
      prefixes: that names may have; where one has it, arrays without it are left out.
      left_out: pattern of the names of arrays that are left out.
      unpublished: (width, depth) of a size without a checkpoint, and its name.
    """

    title: str
    entries: tuple[Entry, ...]
    recognized: tuple[str, ...]
    keys: Mapping[str, Any]
    standardized: tuple[tuple[float, ...], tuple[float, ...]]
    lacking: tuple[str, ...] = ()
    optional: Mapping[str, tuple[str, Any, Any]] = dataclasses.field(default_factory=dict)
    notes: str = ""
    head_dim: int | None = None
    image_size: int | None = None
    prefixes: tuple[str, ...] = ()
    left_out: str = r"(?!)"
    unpublished: tuple[tuple[int, int], str] | None = None

    def recognizes(self, names: Mapping[str, object]) -> bool:
        """True where a file's arrays are of this scheme."""
        return any(
            all(prefix + name in names for name in self.recognized)
            and not any(prefix + name in names for name in self.lacking)
            for prefix in ("", *self.prefixes)
        )

    def read(self, what: str, tensors: Mapping[str, np.ndarray]) -> ForeignModel:
        """Converts the arrays of the file `what`.

        Raises:
          ValueError: arrays are missing, too many, or of shapes that do not fit each other, or the
            model is one that the family does not have.
        """
        kept, left_out = self._kept(tensors)
        model, shape, grid = self._model(what, kept)
        expected = expected_shapes(shape)
        if self._has_positions and grid is not None:
            expected["positions"] = (math.prod(grid), shape.width)
        entries = of_model(self.entries, expected, shape.depth)
        needed = {name: entry.shape(expected) for entry in entries for name in entry.theirs}
        check_arrays(what, {name: x.shape for name, x in kept.items()}, needed, self.title)
        flat: Tensors = {}
        for entry in entries:
            flat |= entry.to_ours(kept)
        if "positions" in flat and grid is not None and shape.grid is None:
            self._check_fixed(what, flat.pop("positions"), grid)
        size = self.image_size if shape.patch_size == 14 else None
        if grid is not None:
            size = grid[0] * shape.patch_size
        return ForeignModel(
            params=from_torch(flat),
            model=model,
            image_size=size,
            title=self.title,
            left_out=left_out,
            standardized=self.standardized,
            notes=self.notes,
        )

    def write(self, params: Mapping[str, Any], model: Mapping[str, Any]) -> Tensors:
        """Converts nested parameters; a classifier is left out.

        Args:
          params: of a run.
          model: the group 'model' of an export's config (described.py).

        Raises:
          ValueError: the family has no such backbone; the message begins with the key.
        """
        choices = {key: each[1:] for key, each in self.optional.items()}
        check_keys(model, {**self.keys, **choices})
        if self.head_dim and model["num_heads"] * self.head_dim != model["width"]:
            raise ValueError(
                f"config.model.num_heads={model['num_heads']}, and {self.title} has heads of "
                f"{self.head_dim} channels"
            )
        flat = to_torch({"backbone": params["backbone"]}, model["patch_size"])
        if self._has_positions and model["positions"] == "sincos2d":
            flat["positions"] = fixed_positions(model)
        tensors: Tensors = {}
        for entry in of_model(self.entries, flat, model["depth"]):
            tensors |= entry.to_theirs(flat)
        return tensors

    @property
    def _has_positions(self) -> bool:
        return any(entry.ours == ("positions",) for entry in self.entries)

    def _theirs(self, ours: str) -> str:
        """Their (first) name of one of our arrays, a block's in the first block."""
        entries = (entry.in_block(0) for entry in self.entries)
        return next(entry.theirs[0] for entry in entries if ours in entry.ours)

    def _kept(self, tensors: Mapping[str, np.ndarray]) -> tuple[Tensors, list[str]]:
        """Arrays without their prefix, and the names of those that are left out."""
        start = self.recognized[0]
        prefix = next(p for p in ("", *self.prefixes) if p + start in tensors)
        kept: Tensors = {}
        left_out: list[str] = []
        for name, array in tensors.items():
            bare = name.removeprefix(prefix)
            if not name.startswith(prefix) or re.fullmatch(self.left_out, bare):
                left_out.append(name)
            else:
                kept[bare] = array
        return kept, sorted(left_out)

    def _model(
        self, what: str, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], ModelShape, tuple[int, int] | None]:
        """Keys of config.model, the sizes of the arrays, and the grid that a file's positions have.

        Raises ValueError.
        """
        patch, up = (
            _array(what, tensors, self._theirs(name))
            for name in ("patch_embedding.weight", "blocks.0.mlp.up.weight")
        )
        if patch.ndim != 4 or patch.shape[2] != patch.shape[3]:
            raise ValueError(
                f"{what} has patches of shape {patch.shape}; they must be square, of shape "
                "(width, channels, rows, columns)"
            )
        width, channels, patch_size, _ = patch.shape
        block = re.escape(self._theirs("blocks.0.mlp.up.weight").split("0.")[0]) + r"(\d+)\..*"
        depth = 1 + max(int(m[1]) for name in tensors if (m := re.fullmatch(block, name)))
        if self.unpublished and (width, depth) == self.unpublished[0]:
            raise ValueError(
                f"{what} has the sizes of {self.title} {self.unpublished[1]} (width {width}, "
                f"{depth} blocks), of which no checkpoint was published; it is another model's"
            )
        there = {key: self._theirs(each[0]) in tensors for key, each in self.optional.items()}
        keys = dict(PLAIN_VIT) | dict(self.keys)
        keys |= {key: each[1 if there[key] else 2] for key, each in self.optional.items()}
        qk_channels = None
        if keys["qk_norm"] == "scale":
            qk_channels = len(tensors[self._theirs("blocks.0.attention.query_norm.weight")])
        grid = None
        if self._has_positions and keys["positions"] in ("learnable", "sincos2d"):
            grid = _square(what, _array(what, tensors, self._theirs("positions")), width)
        model: dict[str, Any] = {
            "width": width,
            "depth": depth,
            "mlp_dim": len(up),
            "patch_size": patch_size,
        }
        head_dim = qk_channels or self.head_dim
        if head_dim and width % head_dim == 0:
            model["num_heads"] = width // head_dim
        shape = ModelShape(
            **model_sizes(model),
            channels=channels,
            grid=grid if keys["positions"] == "learnable" else None,
            qk_channels=qk_channels,
            layer_scale=bool(keys["layer_scale"]),
            start_token=keys["start_token"] == "learned",
            **{key: keys[key] for key in ("norm", "mlp", "mlp_bias", "attention_bias")},
            patch_norm=keys["patch_norm"],
        )
        return model | keys, shape, grid

    def _check_fixed(self, what: str, table: np.ndarray, grid: tuple[int, int]) -> None:
        if not is_fixed(table, grid):
            raise ValueError(
                f"{what} has a {self._theirs('positions')} that is not the sine-cosine one, which "
                f"{self.title} never trains"
            )


def model_sizes(model: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that a ModelShape needs."""
    return {key: model[key] for key in ("width", "depth", "mlp_dim", "patch_size")}


def check_keys(model: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Checks keys of config.model, and the order of the patches, before an export.

    Args:
      model: the group 'model' of an export's config.
      allowed: the value of each key, or a tuple of them; of layer_scale 0 or not 0 alone matters.

    Raises:
      ValueError: a key has another value; the message begins with it.
    """
    for key, value in {**PLAIN_VIT, **allowed}.items():
        values = value if isinstance(value, tuple) else (value,)
        found = model[key]
        if found not in values and not (key == "layer_scale" and found and any(values)):
            right = " or ".join(repr(each) for each in values)
            raise ValueError(f"config.model.{key}={found!r}, where this format has {right}")
    if model["sequence"] is not None:
        raise ValueError("config.model.order.name is not 'raster', which this format has")


def fixed_positions(model: Mapping[str, Any]) -> np.ndarray:
    """The table of positions='sincos2d' on the trained grid, (patch, width)."""
    grid = (int(model["grid"][0]), int(model["grid"][1]))
    return sincos_2d(grid, grid, model["width"])


def is_fixed(table: np.ndarray, grid: tuple[int, int]) -> bool:
    """True where a table has sine-cosine positions, as exactly as float32 computes angles."""
    if table.shape[-1] % 4:
        return False
    fixed = sincos_2d(grid, grid, table.shape[-1])
    return np.allclose(table, fixed, rtol=0, atol=SINCOS_TOLERANCE)


def _square(what: str, table: np.ndarray, width: int) -> tuple[int, int]:
    patches = table.size // width
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f"{what} has {patches} positions, which fit no square grid")
    return side, side


def _array(what: str, tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{what} has no array {name}, which all models of its kind have")
    return tensors[name]
