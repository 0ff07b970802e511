"""Frame of the programs that draw: their flags and their look."""

import pathlib
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darl_jax.runtime import cli

COLORS = (
    *("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#a16207", "#be185d"),
    *("#6b7280", "#06b6d4", "#f59e0b", "#111827"),
)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which needs no screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> None:
    """A faint grid behind the data, and no frame above and to the right."""
    axes.grid(which="both", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def by_name(workdirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, workdir) of each run: the workdir's last part, or all of it where two have the same.

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
    """A whole program: reads flags, draws, and writes the picture. Does not return.

    Exit codes: 0 done; 1 an error while it ran; 2 what cannot be drawn, said in one line.

    Args:
      draw: the figure, from the workdirs (where there are any) and the flags by name.
      usage: an example of a command line.
      output: the picture's file where --output is not given.
      workdirs: whether it draws runs, which are named without a flag.
      **given: flags beside --output.
    """
    flags.DEFINE_string("output", output, "The picture's file, such as a PNG or a PDF.")

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
