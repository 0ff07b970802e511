"""Frame of the figure programs: flags and style."""

import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from matplotlib.figure import Figure

from darl_jax.runtime import cli

COLORS = (
    *("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#a16207", "#be185d"),
    *("#6b7280", "#06b6d4", "#f59e0b", "#111827"),
)


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def by_name(workdirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, workdir) of each run: the workdir's last part, or the whole path if that is ambiguous.

    Raises:
      ValueError: a workdir is named twice.
    """
    lasts = [pathlib.PurePath(workdir).name for workdir in workdirs]
    for workdir, last in zip(workdirs, lasts, strict=True):
        if workdirs.count(workdir) > 1:
            raise ValueError(f"{workdir} is named twice")
        yield (last if lasts.count(last) == 1 else workdir), workdir


def run_program(
    draw: Callable[..., Figure],
    usage: str,
    *,
    output: str,
    workdirs: bool = False,
    **given: flags.FlagHolder,
) -> None:
    """Runs a program: reads flags, draws, and writes the picture. Does not return.

    Exit codes: 0 done; 1 an error while running; 2 bad input, with a one-line message.

    Args:
      draw: makes the figure from the workdirs (if any) and the flags by name.
      usage: example of a command line.
      output: default of --output.
      workdirs: whether the arguments without a flag are workdirs of runs.
      **given: flags beside --output.
    """
    flags.DEFINE_string("output", output, "File of the picture, such as a PNG or PDF.")
    # Without this --help would leave it out, as a flag of this module.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["output"])

    def main(names: Sequence[str] = ()) -> None:
        file = pathlib.Path(flags.FLAGS.output).expanduser()
        if not file.parent.is_dir():  # before work of minutes
            raise ValueError(f"--output={flags.FLAGS.output}: there is no folder {file.parent}")
        if workdirs and not names:
            raise ValueError(f"name one run's workdir or several; usage: {usage}")
        values = {name: flag.value for name, flag in given.items()}
        figure = draw(names, **values) if workdirs else draw(**values)
        figure.savefig(file, dpi=100)
        print(f"wrote {file}")

    cli.run(main, usage, arguments=workdirs)
