"""Writes a checkpoint's parameters for somebody else's framework.

    python -m darl_jax.export --checkpoint=runs/digits --format=safetensors --output=exported

Formats: orbax (the parameters alone), safetensors (with a config.json and a file of PyTorch that
loads them and needs nothing else), timm (for timm's own ViT with RoPE), and the names of arrays in
other projects: aim, aim-l3m, aimv2, aimv2-timm, aimv2-transformers, mae and nepa, each for a
backbone that has the keys of its family; adapters (LoRA's alone, which the others merge). The
folder appears when it is whole, with a model card in README.md. Exit codes: 0 written; 1 writing
failed; 2 a flag or checkpoint that cannot be used. docs/export.md lists each format's arrays.
"""

import pathlib

from absl import flags

from darl_jax.interchange.exporting import FORMS, Exported, Source, check_new, export
from darl_jax.interchange.loading import load_run
from darl_jax.monitoring.writers import read_metrics
from darl_jax.runtime import cli
from darl_jax.training.checkpoint import absolute_path, restore_records
from darl_jax.training.checkpoint.reading import FOLDER

_USAGE = "python -m darl_jax.export --checkpoint=runs/digits --format=safetensors --output=exported"

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run, or its folder of checkpoints; local or a bucket."
)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
_FORMAT = flags.DEFINE_enum("format", None, [*FORMS], "Format of the export.")
_EMA = flags.DEFINE_bool(
    "ema", True, "Write the moving average of the parameters, where the run kept one."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new, or empty.")


def main() -> None:
    """Exports a run's parameters."""
    form, output = _given(_FORMAT), pathlib.Path(_given(_OUTPUT)).expanduser()
    if "://" in _given(_OUTPUT):
        raise ValueError(
            f"--output={_OUTPUT.value} must be a local folder: buckets cannot rename one at "
            "once; copy it there afterwards"
        )
    check_new(output)  # before a large checkpoint is read
    source = read_source(_given(_CHECKPOINT), _STEP.value, averaged=_EMA.value)
    print(report(export(source, form, output), output))


def _given(flag: flags.FlagHolder) -> str:
    """A flag's value. Raises ValueError where there is none."""
    if not flag.value:
        choices = f" (one of {', '.join(FORMS)})" if flag is _FORMAT else ""
        raise ValueError(f"--{flag.name}{choices} is needed; usage: {_USAGE}")
    return str(flag.value)


def read_source(checkpoint: str, step: int | None, *, averaged: bool) -> Source:
    """A run's parameters. Raises as `load_run`."""
    loaded = load_run(checkpoint, step, averaged=averaged)
    assert loaded.config is not None and loaded.step is not None  # a run has both
    decay = loaded.config.get("ema_decay", 0.0) if averaged else 0.0
    average = f", the moving average (decay {decay}) of its parameters" if decay else ""
    folder = absolute_path(checkpoint)
    workdir = folder.parent if folder.name == FOLDER else folder
    try:
        history = read_metrics(workdir)
    except FileNotFoundError:  # a run that was copied without its metrics
        history = []
    return Source(
        params=loaded.params,
        config=loaded.config,
        step=loaded.step,
        description=f"step {loaded.step} of the run {workdir.name}{average}",
        history=history,
        records=restore_records(folder, loaded.step),
    )


def report(result: Exported, output: pathlib.Path) -> str:
    """The parameters written, the parts left out, and Python that loads the rest."""
    return "\n".join(
        [
            f"wrote {result.parameters:,} parameters to {output}: {', '.join(result.files)}",
            f"left out: {result.dropped or 'nothing'}",
            "load it with:",
            *(f"    {line}".rstrip() for line in result.usage(output).splitlines()),
        ]
    )


if __name__ == "__main__":
    cli.run(main, _USAGE)
