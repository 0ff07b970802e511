"""Pre-trained against not: the same fine-tuning from a checkpoint and from nothing, over seeds.

    python benchmarks/transfer.py --data_dir=~/tensorflow_datasets --folder=runs/transfer

CIFAR-10 on a CPU: pre-trains once (configs/cifar10_pretrain.py:transfer), fine-tunes with three
seeds from that checkpoint and from nothing (configs/cifar10_transfer.py:finetune), and prints a
table. Interrupted, the same command goes on where it was.
"""

import argparse
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import experiments
from benchmarks.experiments import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="where TFDS prepared cifar10")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning (3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        sys.exit("--seeds must be at least 2, for there to be a spread")
    data = {"data.data_dir": arguments.data_dir}
    folder = arguments.folder.expanduser().resolve()

    pretrained = Run("pretrained", "cifar10_pretrain.py:transfer", data)
    starts = {"pre-trained": folder / "pretrained", "from nothing": ""}
    runs = {
        start: [
            Run(
                f"{start.replace(' ', '_')}_seed{seed}",
                "cifar10_transfer.py:finetune",
                data | {"init.checkpoint": checkpoint, "seed": seed},
            )
            for seed in range(arguments.seeds)
        ]
        for start, checkpoint in starts.items()
    }
    jobs = arguments.jobs
    experiments.train_all([[pretrained]], folder, jobs=jobs)
    experiments.train_all([[run] for group in runs.values() for run in group], folder, jobs=jobs)

    rows = [["start", *(f"seed {i}" for i in range(arguments.seeds)), "mean", "std"]]
    for start, group in runs.items():
        scores = [experiments.last_value(folder / run.name, "validation/accuracy") for run in group]
        numbers = [*scores, statistics.mean(scores), statistics.stdev(scores)]
        rows.append([start, *(f"{number:.4f}" for number in numbers)])
    print(experiments.table(rows))


if __name__ == "__main__":
    main()
