"""Table 1 at small scale: five positional encodings, three ways to train, two resolutions.

    python benchmarks/positional_encodings.py --data_dir=~/tensorflow_datasets --folder=runs/table1

CIFAR-10 on a CPU: each encoding is trained supervised with full and with causal attention
(configs/supervised_cifar10.py), and pre-trained and fine-tuned (configs/cifar10_tiny_mse.py,
configs/finetune_cifar10_tiny.py). Each is evaluated at 32 pixels and, as it is, at 56, which is
1.75 times as many (Table 1: 1.71). Interrupted, the same command goes on where it was.
"""

import argparse
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import experiments
from benchmarks.experiments import REPOSITORY, Run

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
    pretrained = Run(f"{encoding}_pretrained", "cifar10_tiny_mse.py", keys)
    checkpoint = {"init.checkpoint": folder / pretrained.name}
    return [
        pretrained,
        Run(f"{encoding}_supervised", "supervised_cifar10.py", keys),
        Run(
            f"{encoding}_supervised_causal",
            "supervised_cifar10.py",
            keys | {"objective.mask": "causal"},
        ),
        Run(f"{encoding}_unsupervised_causal", "finetune_cifar10_tiny.py", keys | checkpoint),
    ]


def evaluate_at(run: Run, folder: pathlib.Path, size: int) -> float:
    """Top-1 accuracy of a run's last checkpoint on images of another size."""
    workdir = folder / run.name / f"at_{size}"
    if not (workdir / "metrics.jsonl").exists():
        keys = run.overrides | {"data.image_size": size, "model.trained_image_size": 32}
        command = [
            *(sys.executable, "-m", "darl_jax.evaluate", "--evaluators=loss"),
            *(f"--config={REPOSITORY / 'configs' / run.config}", f"--workdir={workdir}"),
            f"--checkpoint={folder / run.name}",
            *(f"--config.{key}={value}" for key, value in keys.items()),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return experiments.last_value(workdir, "validation/accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="where TFDS prepared cifar10")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="where the runs go")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    runs = {name: runs_of(name, {"data.data_dir": arguments.data_dir}, folder) for name in NAMES}
    experiments.train_all([run for group in runs.values() for run in group], folder)

    for size in (32, LARGE):
        rows = [[f"{size} px", *WAYS, "the paper's, in this order"]]
        for name, group in runs.items():
            scores = [
                experiments.last_value(folder / run.name, "validation/accuracy")
                if size == 32
                else evaluate_at(run, folder, size)
                for run in group[1:]
            ]
            paper = PAPER[name] if size == 32 else PAPER_384.get(name, ())
            cells = [f"{100 * score:.1f}" for score in scores]
            rows.append([NAMES[name], *cells, ", ".join(paper) or "not given"])
        print(experiments.table(rows) + "\n")


if __name__ == "__main__":
    main()
