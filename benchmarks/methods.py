"""Methods of pre-training at equal training FLOPs: fine-tuned, and probed on every block.

    python benchmarks/methods.py --data_dir=~/tensorflow_datasets --folder=runs/methods --jobs=2

CIFAR-10 on a CPU: pre-trains by each method (configs/cifar10_methods.py), gives all the same
fine-tuning and the same linear and attentive probes (configs/cifar10_transfer.py), prints a table,
and draws the accuracy of a linear probe over the FLOPs of pre-training. Interrupted, the same
command goes on where it was.
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from matplotlib.figure import Figure

from benchmarks import experiments
from benchmarks.experiments import REPOSITORY, Run
from darl_jax import config as config_lib
from darl_jax.figures.program import COLORS, new_figure
from darl_jax.monitoring.clock import History
from darl_jax.monitoring.drawing import plain

METHODS = {
    "mse": "DARL, squared error",
    "diffusion": "DARL, diffusion",
    "aim": "AIM",
    "mae": "MAE",
    "next_embedding": "next embedding",
}
NOTHING = "nothing"  # the backbone of DARL and MAE at its initialization

# Keys in which a start differs from the words of configs/cifar10_transfer.py.
_AIM = {
    "model.start_token": "none",
    "model.patch_norm": "layer",
    "model.attention_bias": False,
    "model.mlp_bias": False,
}
_FULL = {"objective.mask": "full"}
_PROBED: dict[str, dict[str, object]] = {"aim": {**_AIM, **_FULL}, "mae": {**_FULL}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="where TFDS prepared cifar10")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, default=3, help="of each probe (3)")
    parser.add_argument("--finetune_seeds", type=int, default=3, help="of fine-tuning (3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    data = {"data.data_dir": arguments.data_dir}

    seeds = dict.fromkeys(("linear", "attentive"), arguments.seeds)
    seeds["finetune"] = arguments.finetune_seeds
    runs = {
        (start, word): [
            transfer(start, word, seed, folder, data)
            for seed in range(1 if start == NOTHING else seeds[word])
        ]
        for word in seeds
        for start in (*METHODS, NOTHING)
    }
    groups = {start: [Run(start, f"cifar10_methods.py:{start}", data)] for start in METHODS}
    groups[NOTHING] = []
    for (start, _), of_seeds in runs.items():
        groups[start] += of_seeds
    experiments.train_all([*groups.values()], folder, jobs=arguments.jobs)

    histories = {name: experiments.history(folder / name) for name in METHODS}
    figure = accuracy_figure(histories, {name: training_flops(name) for name in METHODS})
    figure.savefig(folder / "accuracy_over_flops.png", dpi=150)
    rows = [["pre-training", "fine-tuned", "linear, best block", "attentive, best block"]]
    for start in (*METHODS, NOTHING):
        accuracies = [scores(runs[start, "finetune"], folder)]
        accuracies += [best_block(runs[start, word], folder) for word in ("linear", "attentive")]
        rows.append([METHODS.get(start, start), *accuracies])
    print(experiments.table(rows))


def transfer(
    start: str, word: str, seed: int, folder: pathlib.Path, data: Mapping[str, object]
) -> Run:
    """A run of a word of configs/cifar10_transfer.py from a start.

    Fine-tuning has full attention in all; probes have that of pre-training.
    """
    keys = {**data, "seed": seed, "init.checkpoint": "" if start == NOTHING else folder / start}
    if word == "finetune":
        keys |= {"total_steps": 300, **_FULL, **(_AIM if start == "aim" else {})}
    else:
        keys |= {"total_epochs": 1.0, "optimizer.warmup_epochs": 0.1, **_PROBED.get(start, {})}
    if word == "linear":
        keys["evaluators.knn.every_steps"] = 0
    return Run(f"{start}_{word}_seed{seed}", f"cifar10_transfer.py:{word}", keys)


def training_flops(word: str) -> int:
    """FLOPs of a step of configs/cifar10_methods.py:WORD."""
    values = config_lib.from_file(str(REPOSITORY / "configs" / f"cifar10_methods.py:{word}"))
    config = config_lib.load(values, begins=False)
    return config.method.flops() * config.batch_size


def scores(group: Sequence[Run], folder: pathlib.Path) -> str:
    """Accuracy of a group of seeds, in percent: mean and standard deviation."""
    found = [experiments.last_value(folder / run.name, "validation/accuracy") for run in group]
    return _percent(found)


def best_block(group: Sequence[Run], folder: pathlib.Path) -> str:
    """The same on the block that is best in the mean over the seeds."""
    of_block = {
        block: [
            experiments.last_value(folder / run.name, f"validation/accuracy/block_{block:02d}")
            for run in group
        ]
        for block in range(1, 7)
    }
    best = max(of_block, key=lambda block: statistics.mean(of_block[block]))
    return f"{_percent(of_block[best])} ({best})"


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def accuracy_figure(runs: Mapping[str, History], step_flops: Mapping[str, int]) -> Figure:
    """Draws the probe's accuracy over the FLOPs spent, from the random backbone on.

    Bands are one standard deviation over the disjoint training sets of the probe.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    for i, (name, history) in enumerate(runs.items()):
        lines = [line for line in history if "probe/pretrained/accuracy_mean" in line]
        start = lines[0]
        flops = [0.0, *(line["step"] * step_flops[name] / 1e12 for line in lines)]
        mean, spread = (
            [100 * start[f"probe/random/accuracy_{which}"]]
            + [100 * line[f"probe/pretrained/accuracy_{which}"] for line in lines]
            for which in ("mean", "std")
        )
        color = COLORS[i % len(COLORS)]
        axes.plot(flops, mean, "o-", color=color, linewidth=2, markersize=3.5, label=METHODS[name])
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(flops, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(
        xlabel="training FLOPs, 10$^{12}$", ylabel="linear probe, 100 labels a class: top-1, %"
    )
    axes.set_xlim(left=0)
    plain(axes)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
