"""Exports in several formats; a folder appears only once it is complete."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from darl_jax.interchange import described, foreign, timm_rope
from darl_jax.interchange.adapters import ARRAYS_FILE as ADAPTERS_FILE
from darl_jax.interchange.adapters import without_adapters, write_adapters
from darl_jax.interchange.model_card import model_card
from darl_jax.interchange.names import Tensors, left_out, to_torch
from darl_jax.interchange.safetensors_files import write_safetensors
from darl_jax.runtime import signals
from darl_jax.training.checkpoint import Checkpointer
from darl_jax.training.checkpoint.reading import arrays_by_name

_HERE = "<folder>"
_TITLES = {"head": "head of pre-training", "mae_decoder": "decoder"}  # in words
CARD_FILE, MODULE_FILE = "README.md", "darl_vit.py"
_MODULE = pathlib.Path(__file__).with_name("torch_module.py")


@dataclasses.dataclass(frozen=True)
class Exported:
    """Result of an export."""

    files: Sequence[str]  # names in the folder
    parameters: int  # count of the numbers written
    dropped: str  # the parts left out, in words; empty for none
    code: str  # Python that loads it, with _HERE for the folder

    def usage(self, folder: os.PathLike | str) -> str:
        """Python that loads the export from a folder."""
        return self.code.strip().replace(_HERE, os.fspath(folder))


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint to export."""

    params: Mapping[str, Any]  # nested dicts of numpy arrays
    config: Mapping[str, Any]  # of the run
    step: int
    description: str  # the run and the step, in words
    history: Sequence[Mapping[str, int | float]] = ()  # the run's metrics, for the card
    records: str = ""  # number and fingerprint of the training records


def export(source: Source, form: str, output: pathlib.Path) -> Exported:
    """Writes an export folder with its model card.

    Args:
        source: the checkpoint.
        form: one of FORMS.
        output: folder to write, new or empty.

    Raises:
        FileExistsError: as `check_new`.
        ValueError: the format cannot represent this model.
    """
    if "backbone" not in source.params:
        name = source.config["objective"]["name"]
        raise ValueError(
            f"{source.description} has no ViT, which an export is of; its config.objective.name is "
            f"{name!r}"
        )
    if form != "adapters":
        params, config = without_adapters(source.params, source.config)
        source = dataclasses.replace(source, params=params, config=config)
    description = described.describe(source.params, source.config, source.step)
    with new_folder(output) as folder:
        result = FORMS[form](source, description, folder)
        card = model_card(
            description,
            source=source.description,
            parameters=result.parameters,
            history=source.history,
            records=source.records,
            kept=", ".join(result.files),
            dropped=result.dropped,
            usage=result.usage(output.name),
            notes=_NOTES.get(form, ()),
        )
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return dataclasses.replace(result, files=[*result.files, CARD_FILE])


@contextlib.contextmanager
def new_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that is renamed to `output` once complete and synced to disk.

    Raises:
        FileExistsError: as `check_new`.
    """
    check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    partial.mkdir()
    with signals.unfinished(partial):
        yield partial
        for path in [*sorted(partial.rglob("*"), reverse=True), partial]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        # On POSIX this replaces an empty folder only.
        os.replace(partial, output)


def check_new(output: pathlib.Path) -> None:
    """Raises FileExistsError where `output` is a file or a folder that is not empty."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(
            f"--output={output} exists and is not empty; name a new folder, or remove it first"
        )


def _orbax(source: Source, _: Mapping[str, Any], folder: pathlib.Path) -> Exported:
    """A workdir with one checkpoint that holds only the parameters."""
    checkpointer = Checkpointer(folder, keep_last=1, keep_every=0)
    try:
        checkpointer.save(source.step, {"params": source.params}, source.config, source.records)
        checkpointer.wait()
    finally:
        checkpointer.close()
    checkpoint = f"checkpoints/{source.step}"
    return Exported(
        files=[f"{checkpoint}/{item}" for item in ("state", "config", "metadata")],
        parameters=_count(arrays_by_name(source.params)),
        dropped="the optimizer state",
        code=f"""
import os
import orbax.checkpoint as ocp

state = ocp.StandardCheckpointer().restore(os.path.abspath("{_HERE}/{checkpoint}/state"))
params = state["params"]  # or: darl_jax.interchange.load_model("{_HERE}").params""",
    )


def _safetensors(source: Source, description: Mapping[str, Any], folder: pathlib.Path) -> Exported:
    """model.safetensors, config.json and a PyTorch module that reads both."""
    tensors = to_torch(source.params, description["model"]["patch_size"])
    _write_arrays(folder, tensors)
    described.write_config(folder, description)
    shutil.copyfile(_MODULE, folder / MODULE_FILE)
    size, model = description["data"]["image_size"], description["model"]
    return Exported(
        files=[described.ARRAYS_FILE, described.CONFIG_FILE, MODULE_FILE],
        parameters=_count(tensors),
        dropped=_dropped(source.params),
        code=f"""
import sys; sys.path.insert(0, "{_HERE}")
import torch
from {MODULE_FILE.removesuffix(".py")} import load

model = load()
images = torch.zeros(1, {size}, {size}, {model["channels"]}, dtype=torch.uint8)
features = model(model.standardize(images), mask="{model["mask"]}")
features.tokens  # and features.blocks, one for each block""",
    )


def _timm(source: Source, description: Mapping[str, Any], folder: pathlib.Path) -> Exported:
    """model.safetensors for timm's stock class, and a config.json that timm reads."""
    model = description["model"]
    timm_rope.check_representable(model)
    tensors = to_torch(source.params, model["patch_size"])
    readable = model["pooling"] == "mean" and not model["pooled_norm"]
    head = model["num_classes"] is not None and readable
    arrays = timm_rope.to_timm(tensors, model, head=head)
    _write_arrays(folder, arrays)
    name = timm_rope.architecture(model)
    arguments = timm_rope.model_args(model, model["num_classes"] if head else 0)
    described.write_config(folder, _timm_config(description, name, arguments))
    dropped = [_dropped(source.params)]
    if model["num_classes"] is not None and not head:
        reads = "normalizes after pooling" if model["pooled_norm"] else "reads a single token"
        dropped.append(f"the head (it {reads}, and here timm averages normed tokens)")
    literals = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    given = ", ".join(f"{key}={value!r}" for key, value in literals.items())
    given = textwrap.fill(f"{given},", 90, subsequent_indent="    ", break_long_words=False)
    causal = ", is_causal=True" if model["mask"] == "causal" else ""
    return Exported(
        files=[described.ARRAYS_FILE, described.CONFIG_FILE],
        parameters=_count(arrays),
        dropped="; ".join(filter(None, dropped)),
        code=f"""
import timm, torch

model = timm.create_model(
    "{name}",
    checkpoint_path="{_HERE}/{described.ARRAYS_FILE}",
    {given}
).eval()  # the same: timm.create_model("local-dir:{_HERE}", pretrained=True)
# Images are standardized by data.mean and data.std of the config.
images = torch.zeros(1, {model["channels"]}, {arguments["img_size"][0]}, {arguments["img_size"][1]})
tokens = model.forward_features(images{causal})  # the start token's, then the patches'
features = model.forward_intermediates(images, output_fmt="NLC"{causal})[1]  # of every block""",
    )


def _foreign(
    form: str, source: Source, description: Mapping[str, Any], folder: pathlib.Path
) -> Exported:
    """model.safetensors under another project's names."""
    tensors = foreign.write(form, source.params, description["model"])
    _write_arrays(folder, tensors)
    return Exported(
        files=[described.ARRAYS_FILE],
        parameters=_count(tensors),
        dropped=_in_words(source.params, foreign.dropped(form, source.params)),
        code=f"""
from safetensors.torch import load_file

arrays = load_file("{_HERE}/{described.ARRAYS_FILE}")  # for {foreign.FORMATS[form][0]}""",
    )


def _adapters(source: Source, description: Mapping[str, Any], folder: pathlib.Path) -> Exported:
    """adapters.safetensors, with all that the run trained, and config.json."""
    arrays = write_adapters(source.params, source.config, folder)
    lora = source.config["objective"]["lora"]
    described.write_config(
        folder, {**description, "format": described.ADAPTERS_FORMAT, "adapters": dict(lora)}
    )
    first = next(path for path in arrays if path.endswith("/lora/a/kernel"))
    return Exported(
        files=[ADAPTERS_FILE, described.CONFIG_FILE],
        parameters=_count(arrays),
        dropped="the backbone, which is not trained",
        code=f"""
import safetensors.numpy

arrays = safetensors.numpy.load_file("{_HERE}/{ADAPTERS_FILE}")  # stacked over the blocks
layer = "{first.removesuffix("/lora/a/kernel")}"
a, b = (arrays[f"{{layer}}/lora/{{name}}/kernel"] for name in "ab")
update = {lora["alpha"] / lora["rank"]} * a @ b  # of each block's kernel (in, out)""",
    )


_Form = Callable[[Source, Mapping[str, Any], pathlib.Path], Exported]
FORMS: dict[str, _Form] = {"orbax": _orbax, "safetensors": _safetensors, "timm": _timm}
FORMS |= {form: functools.partial(_foreign, form) for form in foreign.FORMATS}
FORMS["adapters"] = _adapters

_NOTES: dict[str, Sequence[str]] = {
    "adapters": ("The backbone is not here: the adapters belong to that of `init.checkpoint`.",),
    "safetensors": (
        "`darl_vit.py` needs only PyTorch. The first token is the start of the sequence; the "
        "patches follow in the order above.",
    ),
    "timm": (
        "Images of another size: give `img_size`, and leave `ref_feat_shape` as it is. With RoPE "
        "or no positions the features are then the same as darl_jax's; absolute positions are "
        "resampled timm's way, which differs.",
        "Attention is full unless a call says `is_causal=True`, which timm 1.0.31 has and 1.0.20 "
        "has not.",
    ),
}


def _timm_config(
    description: Mapping[str, Any], name: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json as timm's `local-dir:` and hub read it, with darl_jax's keys beside."""
    data, names = description["data"], description["class_names"]
    return {
        "format": described.TIMM_FORMAT,
        "format_version": described.FORMAT_VERSION,
        "architecture": name,
        "num_classes": arguments["num_classes"],
        "num_features": arguments["embed_dim"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], *arguments["img_size"]],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": description["darl_jax_config"]["data"].get("eval_crop", 0.875),
            "crop_mode": "center",
            "mean": data["mean"],
            "std": data["std"],
            "num_classes": arguments["num_classes"],
            **({"label_names": names} if names and arguments["num_classes"] else {}),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "darl_jax_config": description["darl_jax_config"],
        "step": description["step"],
    }


def _write_arrays(folder: pathlib.Path, tensors: Tensors) -> None:
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    # Hub tools expect the framework's name.
    write_safetensors(folder / described.ARRAYS_FILE, contiguous, {"format": "pt"})


def _count(tensors: Mapping[str, Any]) -> int:
    return sum(int(value.size) for value in tensors.values())


def _dropped(params: Mapping[str, Any]) -> str:
    """The parts that PyTorch's module has no place for, in words."""
    return _in_words(params, left_out(params))


def _in_words(params: Mapping[str, Any], groups: Sequence[str]) -> str:
    titles = _TITLES if "head" in left_out(params) else _TITLES | {"head": "head"}
    return ", ".join(
        f"the {titles.get(name, name.replace('_', ' '))} "
        f"({_count(arrays_by_name(params[name])):,} parameters)"
        for name in groups
    )
