r"""Makes images with a pre-trained model: from nothing, or from the first patches of images on.

    python -m darl_jax.sample --checkpoint=runs/digits --output=samples
    python -m darl_jax.sample --checkpoint=runs/digits --output=completed --validation_images=8
    python -m darl_jax.sample --checkpoint=runs/photos --output=completed --images=a.png,b.png \
        --known=20 --completions=4 --sampler.name=ddim --sampler.steps=50

The output folder gets each image as a PNG, all of them as grid.png (originals first, in a red
frame) and as arrays in samples.npz, and settings.json. The sampler is the config's, but for what
--sampler.KEY=VALUE says; models of the squared error have none and give their mean. A model of two
streams makes patches in any --order, and any --region anew. A seed gives the same images for any
batch size and number of devices. Exit codes: 0 done; 1 an error while it ran; 2 a flag, config,
image or checkpoint that cannot be used.
"""

import dataclasses
import logging as logging_lib
import typing
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from darl_jax.evaluators.schedule import read_config
from darl_jax.generation.sampling import Wanted, sample
from darl_jax.interchange.loading import load_model
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.runtime.cli import (
    BAD_INPUT,
    EXIT_BAD_INPUT,
    EXIT_ERROR,
    advice_on_memory,
    flags_parser,
    one_line_errors,
)

_USAGE = "python -m darl_jax.sample --checkpoint=runs/digits --output=samples"


_DEFINE: dict[type, Any] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


def _define_sampler_flags() -> dict[str, flags.FlagHolder]:
    """A flag --sampler.KEY for each key of config.sampler, without a value of its own."""
    holders = {}
    for key, kind in typing.get_type_hints(SamplerConfig).items():
        plain = (typing.get_args(kind) or (kind,))[0]
        holders[key] = _DEFINE[plain](
            f"sampler.{key}", None, f"In the place of config.sampler.{key}."
        )
    return holders


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file in the place of the checkpoint's own config."
)
_SAMPLER = _define_sampler_flags()
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir.")
_STEP = flags.DEFINE_integer("step", None, "Of the run's checkpoints; the newest if not given.")
_OUTPUT = flags.DEFINE_string("output", None, "A folder that is new or empty.")
_NUMBER = flags.DEFINE_integer("number", 16, "Of images from nothing.")
_IMAGES = flags.DEFINE_list("images", [], "Image files, or folders of them, to be completed.")
_VALIDATION_IMAGES = flags.DEFINE_integer(
    "validation_images", 0, "How many images of the validation split are completed."
)
_KNOWN = flags.DEFINE_integer(
    "known", None, "Patches that are kept of each image, the first ones; half if not given."
)
_COMPLETIONS = flags.DEFINE_integer("completions", 7, "Of each image that is completed.")
_ORDER = flags.DEFINE_string(
    "order", None, "In which patches are made: NAME, NAME:BLOCK or permutation:SEED."
)
_REGION = flags.DEFINE_string(
    "region", None, "Rows and columns of patches that are made anew: FIRST:END,FIRST:END."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images that are made at once.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")


def main(argv: list[str]) -> None:
    """Makes images, and exits with one of the codes above."""
    del argv
    logging_lib.getLogger("jax._src.xla_bridge").setLevel(logging_lib.WARNING)
    with one_line_errors(EXIT_ERROR, OSError), one_line_errors(EXIT_BAD_INPUT, *BAD_INPUT):
        if not _CHECKPOINT.value or not _OUTPUT.value:
            raise ValueError(f"--checkpoint and --output are needed; usage: {_USAGE}")
        loaded = load_model(_CHECKPOINT.value, _STEP.value)
        config = read_config(_CONFIG.value, loaded)
        changed: dict[str, Any] = {
            key: flag.value for key, flag in _SAMPLER.items() if flag.value is not None
        }
        wanted = Wanted(
            sampler=dataclasses.replace(config.sampler, **changed),
            sampler_is_asked=bool(changed),
            number=_NUMBER.value,
            images=tuple(_IMAGES.value),
            validation_images=_VALIDATION_IMAGES.value,
            known=_KNOWN.value,
            completions=_COMPLETIONS.value,
            order=_ORDER.value,
            region=_REGION.value,
            batch_size=_BATCH_SIZE.value,
            seed=_SEED.value,
        )
        with advice_on_memory():
            folder = sample(config, loaded, wanted, _OUTPUT.value)
    print(f"{folder}: grid.png has all of them")


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser(_USAGE))
