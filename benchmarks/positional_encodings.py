"""Table 1 at small scale: five positional encodings, three ways to train, two resolutions.

    python benchmarks/positional_encodings.py --data_dir=~/tensorflow_datasets --folder=runs/table1

CIFAR-10 on a CPU: each encoding is trained supervised with full and with causal attention
(configs/cifar10_transfer.py:supervised), and pre-trained (configs/cifar10_pretrain.py:tiny_mse) and
fine-tuned (configs/cifar10_transfer.py:tiny). Each is evaluated at 32 pixels and, without more
training, at 56, which is 1.75 times as many (Table 1: 1.71). Interrupted, the same command goes on
where it was.
"""

import argparse
import pathlib
import sys
from concurrent import futures

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import experiments
from benchmarks.experiments import Run

NAMES = {
    "none": "NoPE",
    "sincos2d": "Absolute",
    "learnable": "Learnable",
    "rope1d": "1D RoPE",
    "rope2d": "2D RoPE",
}
WAYS = ("supervised", "supervised_causal", "unsupervised_causal")
# ImageNet top-1 of ViT-L/16 in percent, in the order of WAYS, and the same at 384 pixels.
PAPER = {
    "none": ("80.3", "80.2", "81.9"),
    "sincos2d": ("82.5", "81.0", "83.1"),
    "learnable": ("81.9", "80.7", "83.2"),
    "rope1d": ("82.8", "81.7", "83.5"),
    "rope2d": ("82.7", "81.8", "84.5"),
}
PAPER_384 = {"rope1d": ("52.0", "36.4", "84.2"), "rope2d": ("81.7", "80.4", "85.1")}
LARGE = 56


def runs_of(encoding: str, data: dict[str, object], folder: pathlib.Path) -> list[Run]:
    """The runs of one encoding, those of WAYS last and in their order."""
    keys = data | {"model.positions": encoding}
    pretrained = Run(f"{encoding}_pretrained", "cifar10_pretrain.py:tiny_mse", keys)
    checkpoint = {"init.checkpoint": folder / pretrained.name}
    return [
        pretrained,
        Run(f"{encoding}_supervised", "cifar10_transfer.py:supervised", keys),
        Run(
            f"{encoding}_supervised_causal",
            "cifar10_transfer.py:supervised",
            keys | {"objective.mask": "causal"},
        ),
        Run(f"{encoding}_unsupervised_causal", "cifar10_transfer.py:tiny", keys | checkpoint),
    ]


def evaluate_at(run: Run, folder: pathlib.Path, size: int) -> float:
    """Top-1 accuracy of a run's last checkpoint on images of another size."""
    workdir = folder / run.name / f"at_{size}"
    if not any("validation/accuracy" in line for line in experiments.history(workdir)):
        keys = run.overrides | {"data.image_size": size, "model.trained_image_size": 32}
        arguments = [*experiments.flags(run._replace(overrides=keys)), "--evaluators=validation"]
        arguments += [f"--checkpoint={folder / run.name}", f"--workdir={workdir}"]
        experiments.call("darl_jax.evaluate", arguments, folder / f"{run.name}_at_{size}.log")
    return experiments.last_value(workdir, "validation/accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="where TFDS prepared cifar10")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="where the runs go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    runs = {name: runs_of(name, {"data.data_dir": arguments.data_dir}, folder) for name in NAMES}
    experiments.train_all([*runs.values()], folder, jobs=arguments.jobs)

    with futures.ThreadPoolExecutor(arguments.jobs) as pool:
        large = {
            name: list(pool.map(lambda run: evaluate_at(run, folder, LARGE), group[1:]))
            for name, group in runs.items()
        }
    small = {
        name: [
            experiments.last_value(folder / run.name, "validation/accuracy") for run in group[1:]
        ]
        for name, group in runs.items()
    }
    for size, scores, paper in ((32, small, PAPER), (LARGE, large, PAPER_384)):
        rows = [[f"{size} px", *WAYS, "the paper's, in this order"]]
        for name, title in NAMES.items():
            cells = [f"{100 * score:.1f}" for score in scores[name]]
            rows.append([title, *cells, ", ".join(paper.get(name, ())) or "not given"])
        print(experiments.table(rows) + "\n")


if __name__ == "__main__":
    main()
