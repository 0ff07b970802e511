r"""Compresses with a trained autoregressive diffusion model, without loss.

    python -m darl_jax.compress compress --checkpoint=runs/digits --input=a.npy --output=a.ardm
    python -m darl_jax.compress decompress --checkpoint=runs/digits --input=a.ardm --output=b.npy
    python -m darl_jax.compress info --input=a.ardm
    python -m darl_jax.compress verify --checkpoint=runs/digits --input=a.ardm --original=a.npy

Input: an array of the data's integers (.npy), pictures of any size (several become one
file), a text, or a 16-bit mono WAV file, of the kind that the model was trained on. Pixels, text
and samples come back as they were; what else a picture's or a WAV file's header held does not.

Files travel: the default mode computes in float64 and decodes on machines of other kinds. --fast
computes in float32 and decodes on this machine only. More --steps are more network calls and fewer
bytes. Nothing is written under the name --output before it has been decoded and compared. Exit
codes: 0 done; 1 an error while it ran, or --salvage that lost items; 2 a flag, file or checkpoint
that cannot be used.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.codec import compression
from darl_jax.codec.file_format import Content, FileError, Header, Kind, parse
from darl_jax.codec.model import CodecModel, numerics, open_model
from darl_jax.codec.originals import Domain, Form, Original, form_of, kind_of, read
from darl_jax.codec.stream import Walk, encode
from darl_jax.codec.tables import GUARDS
from darl_jax.codec.writing import check_absent, write_whole
from darl_jax.data.text.alphabet import LETTERS
from darl_jax.data.text.config import TextConfig
from darl_jax.generation.request import image_files
from darl_jax.interchange.exporting import check_new, new_folder
from darl_jax.methods.ardm.method import ARDM
from darl_jax.monitoring.progress import Progress
from darl_jax.runtime import cli
from darl_jax.training.checkpoint import restore_params

_USAGE = (
    "python -m darl_jax.compress compress|decompress|info|verify --checkpoint=runs/digits "
    "--input=a.npy --output=a.ardm"
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; without it the checkpoint's own config is used."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of the model's run.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest.")
_INPUT = flags.DEFINE_list("input", [], "File to read; for compress also pictures and folders.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write; a folder for several pictures.")
_ORIGINAL = flags.DEFINE_list("original", [], "verify: what the file is to decode to.")
_STEPS = flags.DEFINE_integer(
    "steps", None, "compress: network calls in each stage; by default 100 in all stages together."
)
_POLICY = flags.DEFINE_enum(
    "policy", "best", ["best", "even"],
    "compress: which positions a call codes, by the losses in training or evenly.",
)  # fmt: skip
_ORDERS = flags.DEFINE_integer(
    "orders", 1, "compress: orders of generation to try on the first items."
)
_LANES = flags.DEFINE_integer("lanes", 64, "Number of items that the network sees at once.")
_FAST = flags.DEFINE_bool("fast", False, "compress: float32, for this machine alone.")
_EXPLAIN = flags.DEFINE_bool("explain", False, "compress --fast: say in the file what decodes it.")
_DIGESTS = flags.DEFINE_bool(
    "digests", True, "compress: 8 bytes for each item, not one digest for all: --salvage needs it."
)
_VERIFY = flags.DEFINE_bool("verify", True, "compress: decode before the file is written.")
_SALVAGE = flags.DEFINE_bool("salvage", False, "decompress: write the items that are whole.")
_IGNORE_PROFILE = flags.DEFINE_bool(
    "ignore_profile", False, "Try a file of the fast mode under other numerics."
)


def main(arguments: Sequence[str]) -> None:
    """Does what the command says."""
    commands: dict[str, Callable[[], None]] = {
        "compress": compress,
        "decompress": decompress,
        "info": info,
        "verify": verify,
    }
    if len(arguments) != 1 or arguments[0] not in commands:
        given = " ".join(arguments) or "no command"
        raise ValueError(f"{given}: the command is one of {', '.join(commands)}; usage: {_USAGE}")
    if _LANES.value < 1 or _ORDERS.value < 1:
        raise ValueError("--lanes and --orders must be at least 1")
    commands[arguments[0]]()


def compress() -> None:
    """Compresses --input into --output."""
    output = needed_output()
    check_absent(output)
    method = trained_method()
    domain = domain_of(method)
    original = read_original(_INPUT.value, "--input", domain)
    count = len(original.values)
    with numerics(_FAST.value):
        model = loaded_model(method, fast=_FAST.value)
        each = max(1, min(model.positions, 100 // model.alternatives.stages.number))
        settings = compression.Settings(
            steps=each if _STEPS.value is None else _STEPS.value,
            policy="even" if _POLICY.value == "even" else "best",
            lanes=max(1, min(_LANES.value, count)),
            fast=_FAST.value,
            item_digests=_DIGESTS.value,
            explain=_EXPLAIN.value,
        )
        settings = best_order(original, model, settings)
        with counted(model, settings.lanes, count, settings.steps) as called:
            made = compression.compress(
                original.values, original.layout, original.kind, original.source, model, settings,
                called,
            )  # fmt: skip
        if _VERIFY.value:
            content = parse(made.data, "what was compressed")
            found = decoded(content, "what was compressed", model, domain)
            expected = compression.decoded_form(original.values, original.layout)
            if not np.array_equal(found, expected):
                raise FileError("what was compressed decodes to other values; nothing is written")
    write_whole(output, made.data)
    print(f"{output}: {made}")


def decompress() -> None:
    """Decompresses --input into --output."""
    output = needed_output()
    content, name = read_file(salvage=_SALVAGE.value)
    header = content.header
    if _SALVAGE.value and header.digest:
        raise FileError(f"{name} has one digest for all items, so that none can be salvaged")
    method = trained_method()
    domain = domain_of(method)
    form = form_in(header, name, domain)
    if form.several:
        check_new(output)
    else:
        check_absent(output)
    with numerics(header.fast):
        model = loaded_model(method, fast=header.fast)
        values, right = decoded_items(content, name, model, form)
    if not _SALVAGE.value:
        compression.check_right(right, name)
    files = form.files(values)
    if not form.several:
        write_whole(output, files[0])
    else:
        with new_folder(output) as partial:
            for number, data in enumerate(files):
                (partial / f"{number:05d}{form.suffix}").write_bytes(data)
    what = f"{len(files)} files" if form.several else "1 file"
    if not right.all():
        lost = ", ".join(map(str, np.flatnonzero(~right)[:10]))
        raise OSError(
            f"{output}: {what} of {right.sum()} of {len(right)} items; zeros stand for the others, "
            f"which are lost (the first are number {lost}); {content.damage}"
        )
    print(f"{output}: {what} of {len(right):,} items")


def verify() -> None:
    """Decodes --input and compares it with its digests, and with --original if given."""
    content, name = read_file()
    method = trained_method()
    domain = domain_of(method)
    with numerics(content.header.fast):
        model = loaded_model(method, fast=content.header.fast)
        values = decoded(content, name, model, domain)
    against = "the digests"
    if _ORIGINAL.value:
        original = read_original(_ORIGINAL.value, "--original", domain)
        _, source = compression.split_source(content.header)
        expected = compression.decoded_form(original.values, original.layout)
        if source != original.source or not np.array_equal(values, expected):
            raise ValueError(f"{name} decodes to another original than {_ORIGINAL.value[0]}")
        against += f" and {_ORIGINAL.value[0]}"
    print(f"{name}: {len(values):,} items are whole, by {against}")


def info() -> None:
    """Prints what the header of --input says; needs no model."""
    content, name = read_file(salvage=True)
    header = content.header
    words = sum(item.words for item in header.items)
    explanation, _ = compression.split_source(header)
    lines = {
        "file": name,
        "kind": header.kind.name.lower(),
        "mode": "fast (float32, one machine)" if header.fast else "portable (float64)",
        "items": f"{len(header.items):,}",
        "model": header.model.hex(),
        "numerics": f"{header.profile.hex()} {explanation}".strip() if header.fast else "any",
        "calls in each stage": header.steps,
        "policy": header.policy.hex(),
        "order's seed": header.seed,
        "lanes": header.lanes,
        "guard": f"{GUARDS[min(header.halvings, len(GUARDS) - 1)]:g} nats",
        "digests": "one for all items" if header.digest else "one for each item",
        "header": f"{content.header_bytes:,} bytes",
        "streams": f"{4 * words:,} bytes",
        "state": content.damage or "whole (its checksums are right)",
    }
    for key, value in lines.items():
        print(f"{key + ':':<21}{value}")


# --- parts of commands ---------------------------------------------------------------------------


def needed_output() -> Path:
    """The path of --output. Raises ValueError where a flag is missing."""
    if not _CHECKPOINT.value or not _INPUT.value or not _OUTPUT.value:
        raise ValueError(f"--checkpoint, --input and --output are needed; usage: {_USAGE}")
    return Path(_OUTPUT.value).expanduser()


def trained_method() -> ARDM:
    """The checkpoint's method. Raises ValueError where it is of another kind."""
    if not _CHECKPOINT.value:
        raise ValueError(f"--checkpoint is needed; usage: {_USAGE}")
    method = config_lib.load(_CONFIG.value, begins=False).method
    if not isinstance(method, ARDM):
        raise ValueError(
            f"{_CHECKPOINT.value} was trained with config.objective.name={method.name!r}; only "
            "models of 'ardm' compress"
        )
    return method


def loaded_model(method: ARDM, *, fast: bool) -> CodecModel:
    """The model with the checkpoint's parameters, averaged where the run kept an average."""
    params, _, step = restore_params(_CHECKPOINT.value or "", _STEP.value)
    return open_model(method, params, fast=fast, name=f"step {step} of {_CHECKPOINT.value}")


def read_original(paths: Sequence[str], flag: str, domain: Domain) -> Original:
    """An original from files, or from the pictures in folders."""
    files = [Path(text).expanduser() for text in paths]
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f"{flag}: there is no file {path}")
    if any(path.is_dir() for path in files):
        files = image_files(paths, flag)
    return read(files, kind_of(files[0], domain), domain)


def read_file(*, salvage: bool = False) -> tuple[Content, str]:
    """The compressed file --input, and its name for messages."""
    if len(_INPUT.value) != 1:
        raise ValueError(f"--input is to be one compressed file; usage: {_USAGE}")
    path = Path(_INPUT.value[0]).expanduser()
    return parse(path.read_bytes(), str(path), salvage=salvage), str(path)


def form_in(header: Header, name: str, domain: Domain) -> Form:
    """Form of the original in a file. Raises FileError where the model is of another kind."""
    _, source = compression.split_source(header)
    return form_of(header.kind, source, len(header.items), domain, name)


def decoded(content: Content, name: str, model: CodecModel, domain: Domain) -> np.ndarray:
    """Values of all items. Raises FileError where one is not as it was written."""
    values, right = decoded_items(content, name, model, form_in(content.header, name, domain))
    compression.check_right(right, name)
    return values


def decoded_items(
    content: Content, name: str, model: CodecModel, form: Form
) -> tuple[np.ndarray, np.ndarray]:
    """Values of all items, and which of them are right, with a live line."""
    header = content.header
    lanes = header.lanes if header.fast else max(1, min(_LANES.value, len(header.items)))
    with counted(model, lanes, len(header.items), header.steps) as called:
        walk = compression.rebuilt_walk(
            header, name, model, called, ignore_profile=_IGNORE_PROFILE.value
        )
        return compression.decompress(content, model, walk, form.layout(), lanes)


@contextlib.contextmanager
def counted(model: CodecModel, lanes: int, items: int, steps: int) -> Iterator[Callable[[], None]]:
    """Counts network calls on a live line, and logs their number and rate."""
    done, start = 0, time.perf_counter()
    total = -(-items // lanes) * steps * model.alternatives.stages.number
    progress = Progress(total, unit="call")

    def called() -> None:
        nonlocal done
        done += 1
        progress.update(done)

    with contextlib.closing(progress):
        yield called
    seconds = time.perf_counter() - start
    each = model.flops * lanes / 1e9
    logging.info(
        "%d network calls of %d items in %.2f s: %.3f GFLOP each, %.2f GFLOP/s",
        *(done, lanes, seconds, each, each * done / seconds),
    )


def best_order(
    original: Original, model: CodecModel, settings: compression.Settings
) -> compression.Settings:
    """The settings with the seed whose order codes the first items shortest.

    Settled here: items of the original decide, for the file holds the seed and any decodes.
    """
    if _ORDERS.value == 1 or not len(original.values):
        return settings
    bits = []
    layout = original.layout.rows(0, settings.lanes)
    for seed in range(_ORDERS.value):
        starts = model.starts(settings.policy, settings.steps)
        walk = Walk(model.network, model.alternatives, seed, starts)
        encoded = encode(walk, original.values[: settings.lanes], layout, guarded=False)
        bits.append(sum(item.bits for item in encoded))
        logging.info("order %d: %.4f bits/dim", seed, bits[-1] / layout.coded.sum())
    return dataclasses.replace(settings, seed=int(np.argmin(bits)))


def domain_of(method: ARDM) -> Domain:
    """Values of the method's data, and what files hold them."""
    kinds = {"images": Kind.IMAGE, "text": Kind.TEXT, "audio": Kind.AUDIO}
    data = method.data
    of_letters = isinstance(data, TextConfig) and data.alphabet == "text8"
    return Domain(
        kind=kinds.get(data.name, Kind.ARRAY),
        shape=tuple(method.data_shape),
        levels=data.integers.levels,
        integers=method.integers,
        shown=method.shown,
        letters=LETTERS if of_letters else bytes(range(256)),
    )


if __name__ == "__main__":
    cli.run(main, _USAGE, arguments=True)
