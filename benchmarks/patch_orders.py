"""Orders of patches at small scale: Table 7, and random against raster order as in Figure 6.

    python benchmarks/patch_orders.py --data_dir=~/tensorflow_datasets --folder=runs/orders

CIFAR-10 on a CPU, a grid of 8 x 8 patches (configs/cifar10_pretrain.py:orders): each order's
squared error, and the accuracy of a linear probe with 100 labels a class on the middle block. Then
two models of two streams, raster and random, whose probes are read over the training. Interrupted,
the same command goes on where it was.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import experiments
from benchmarks.experiments import Run

CONFIG = "cifar10_pretrain.py:orders"
# Title, order and block, and Table 7's accuracy where it has one: ImageNet, ViT-L/16 at 256 pixels,
# whose grid is 16 x 16.
ORDERS = (
    ("raster", "raster", 2, "83.3"),
    ("nested raster 2 x 2", "nested_raster", 2, "83.3"),
    ("nested raster 4 x 4", "nested_raster", 4, "83.4"),
    ("round-robin 2 x 2", "round_robin", 2, "83.0"),
    ("round-robin 4 x 4", "round_robin", 4, "82.7"),
    ("spiral", "spiral", 2, "not given"),
    ("checkerboard", "checkerboard", 2, "not given"),
    ("one permutation", "permutation", 2, "not given"),
)
PROBE = "probe/pretrained/accuracy_mean"
STREAMS = ("raster", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="where TFDS prepared cifar10")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="where the runs go")
    parser.add_argument("--steps", type=int, default=200, help="of each order (200)")
    parser.add_argument("--two_stream_steps", type=int, default=700, help="of each (700)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    data = {"data.data_dir": arguments.data_dir}
    orders = [
        Run(
            f"{name}_{block}",
            CONFIG,
            data
            | {
                "total_steps": arguments.steps,
                "model.order.name": name,
                "model.order.block": block,
            },
        )
        for _, name, block, _ in ORDERS
    ]
    read_every = arguments.two_stream_steps // 4
    streams = [
        Run(
            f"two_stream_{name}",
            CONFIG,
            data
            | {
                "total_steps": arguments.two_stream_steps,
                "objective.two_stream": True,
                "model.order.name": name,
                "evaluators.validation.every_steps": read_every,
                "evaluators.probe.every_steps": read_every,
            },
        )
        for name in STREAMS
    ]
    experiments.train_all([[run] for run in [*streams, *orders]], folder, jobs=arguments.jobs)

    rows = [["order", "validation error", "probe, top-1 in %", "Table 7"]]
    for run, (title, _, _, paper) in zip(orders, ORDERS, strict=True):
        error = experiments.last_value(folder / run.name, "validation/loss")
        accuracy = experiments.last_value(folder / run.name, PROBE)
        rows.append([title, f"{error:.4f}", f"{100 * accuracy:.1f}", paper])
    print(experiments.table(rows) + "\n")

    histories = [
        {line["step"]: line for line in experiments.history(folder / run.name) if PROBE in line}
        for run in streams
    ]
    rows = [["steps", *(f"{name}: error, probe in %" for name in STREAMS)]]
    for step in sorted(histories[0]):
        lines = [history[step] for history in histories]
        cells = [f"{line['validation/loss']:.4f}, {100 * line[PROBE]:.1f}" for line in lines]
        rows.append([str(step), *cells])
    print(experiments.table(rows))


if __name__ == "__main__":
    main()
