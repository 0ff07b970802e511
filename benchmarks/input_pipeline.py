"""How many images a second the input pipeline makes, beside tf.data doing the same work.

    python benchmarks/input_pipeline.py --data_dir=~/tensorflow_datasets
    python benchmarks/input_pipeline.py --data_dir=~/tensorflow_datasets \
        --tf_python=/path/to/tensorflow/bin/python

ImageNet at 224 px: the same JPEGs in the same order, with the boxes and flips that training draws,
are decoded, cropped, resized with antialiased bicubic and mirrored by both sides, from bytes in
memory to batches of uint8. CIFAR-10 at 32 px: cropped, resized and mirrored out of memory. The
sides take turns. A core's rate is images for each second of processor time of one pinned process,
which other work on the machine disturbs less than the clock.

TensorFlow is not needed: --tf_python is a Python that has it (pip install tensorflow-cpu); without
it only this project's rows are printed.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from darl_jax.data import order
from darl_jax.data.base import Split, fingerprint_of
from darl_jax.data.batches import BatchRows, TrainChunks, rows_to_records
from darl_jax.data.images import decode as images
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.decode import HostImage
from darl_jax.data.images.memory import MemorySplit
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import train_batches
from darl_jax.data.sources.base import Record
from darl_jax.data.sources.tfds import TfdsSource
from darl_jax.runtime.cli import EXIT_BAD_INPUT, EXIT_ERROR, USER_ERRORS, one_line_errors

SIZE = 224
BATCH = 32
SEED = 0
# What a border of the crop is: a resize after the crop cannot look beyond its edge, ours does.
BORDER = 4


class HeldSource:
    """Encoded images in memory, as a source."""

    dataset, split = "imagenet2012 in memory", "train"

    def __init__(self, records: Sequence[Record], class_names: tuple[str, ...]):
        self._records, self.class_names = records, class_names

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: Sequence[int]) -> list[Record]:
        """Records by their numbers."""
        return [self._records[i] for i in index]

    def files(self, index: Sequence[int]) -> list[str]:
        """None: the records are in memory."""
        del index
        return []

    def fingerprint(self) -> str:
        """A hash of the records' names."""
        return fingerprint_of(*(record.name for record in self._records))


class Round(NamedTuple):
    """One measurement: images, seconds by the clock, and seconds of processor time."""

    images: int
    seconds: float
    cpu: float


def held_source(data_dir: str) -> HeldSource:
    """The split's plain JPEGs, as many as make whole batches; tf.data knows no EXIF rotation."""
    source = TfdsSource("imagenet2012", "train", data_dir)
    plain = []
    for record in source.read(range(len(source))):
        assert isinstance(record.image, bytes)
        with Image.open(io.BytesIO(record.image)) as image:
            upright = image.getexif().get(0x0112, 1) == 1
            if image.format == "JPEG" and image.mode in ("RGB", "L") and upright:
                plain.append(record)
    return HeldSource(plain[: len(plain) // BATCH * BATCH], source.class_names)


def boxes_and_flips(
    source: HeldSource, config: ImagesConfig
) -> tuple[np.ndarray, np.ndarray, list]:
    """(boxes, flips, encoded images) of the first epoch, in its order."""
    rows = np.arange(len(source), dtype=np.int64)
    epoch, index = rows_to_records(rows, len(source), SEED)
    uniforms = order.uniforms(SEED, epoch, index, images.UNIFORMS_PER_RECORD)
    content = [record.image for record in source.read(index.tolist())]
    headers = [HostImage(c) for c in content]
    boxes = images.random_resized_crops(
        uniforms,
        np.array([h.height for h in headers]),
        np.array([h.width for h in headers]),
        config.crop_scale,
        config.crop_ratio,
    )
    return boxes, images.random_flips(uniforms), content


class Peer:
    """tf_data_peer.py in another Python, which runs a round when it is asked."""

    def __init__(self, python: str, folder: pathlib.Path, cores: str):
        script = pathlib.Path(__file__).with_name("tf_data_peer.py")
        self._python = python
        self._process = subprocess.Popen(
            [python, str(script), str(folder), cores],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, what: str) -> dict:
        """Raises OSError: the other Python has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"--tf_python={self._python} ended; does it have tensorflow?")
        return json.loads(line)

    def round(self) -> Round:
        """One epoch."""
        answer = self.ask("round")
        return Round(answer["images"], answer["seconds"], answer["cpu"])

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This thread stays on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def alone(make_chunk: Callable[[int], dict], chunks: int) -> Round:
    """The chunks of one epoch, made in this thread."""
    with one_core():
        began, cpu = time.perf_counter(), time.process_time()
        count = sum(len(make_chunk(element)["index"]) for element in range(chunks))
        return Round(count, time.perf_counter() - began, time.process_time() - cpu)


def together(split: Split, config: ImagesConfig, batches: int) -> Round:
    """The pipeline as training uses it, with all cores, after its workers have started."""
    size = 1024 if split.in_memory else 8 * BATCH
    options = {"batch_size": size, "seed": SEED, "start_step": 0}
    with train_batches(split, config, **options) as stream:
        for _ in range(2):
            next(stream)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(stream)
        return Round(batches * size, time.perf_counter() - began, time.process_time() - cpu)


def print_rates(rounds: dict[str, list[Round]], *, by_core: bool) -> None:
    """Best and median images for each second: of processor time, or by the clock."""
    for name, values in rounds.items():
        rates = [r.images / (r.cpu if by_core else r.seconds) for r in values]
        print(f"  {name:44}{max(rates):10,.0f}{statistics.median(rates):10,.0f}")


def print_ratio(rounds: dict[str, list[Round]], ours: str, theirs: str) -> None:
    """How many times as fast; the median of the rounds that stood side by side."""
    pairs = zip(rounds[ours], rounds[theirs], strict=True)
    ratios = [(a.images / a.cpu) / (b.images / b.cpu) for a, b in pairs]
    print(f"  {f'{ours} / {theirs}':44}{max(ratios):10.2f}{statistics.median(ratios):10.2f}")


def print_difference(name: str, one: np.ndarray, other: np.ndarray) -> None:
    """Gray levels between two sets of pixels: everywhere, and inside the border of the crop."""
    difference = np.abs(one.astype(np.int16) - other)
    inside = difference[:, BORDER:-BORDER, BORDER:-BORDER]
    print(
        f"  {name:44}{difference.mean():10.3f}{difference.max():10d}"
        f"{inside.mean():10.3f}{inside.max():10d}{(inside > 2).mean():10.4%}"
    )


def measure_imagenet(data_dir: str, tf_python: str, rounds: int) -> None:
    """Prints the rows of ImageNet."""
    cores = len(os.sched_getaffinity(0))
    config = ImagesConfig(image_size=SIZE, num_workers=cores)
    source = held_source(data_dir)
    boxes, flips, content = boxes_and_flips(source, config)
    batch_rows = BatchRows(BATCH, 0, 1, BATCH)
    chunks = len(source) // BATCH
    pillow = dataclasses.replace(config, resizer="pillow")
    contestants: dict[str, Callable[[], Round]] = {}
    stored = TfdsSource("imagenet2012", "train", data_dir)
    for name, records, with_config in (
        ("ours", source, config),
        ("ours, resizer='pillow'", source, pillow),
        ("ours, reading ArrayRecord", stored, config),
    ):
        make_chunk = TrainChunks(ImageSplit(records, with_config), batch_rows, SEED)
        contestants[name] = functools.partial(alone, make_chunk, chunks)
    on_all = {"ours": lambda: together(ImageSplit(source, config), config, 6)}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        if tf_python:
            np.savez(
                folder / "work.npz",
                content=np.frombuffer(b"".join(content), np.uint8),
                lengths=np.array([len(c) for c in content]),
                boxes=boxes,
                flips=flips,
            )
            peers = {cores: Peer(tf_python, folder, cores) for cores in ("one", "all")}
            for peer in peers.values():
                stack.callback(peer.close)
                peer.round()
            contestants["tf.data"] = peers["one"].round
            on_all["tf.data"] = peers["all"].round
        one = take_turns(contestants, rounds)
        every = take_turns(on_all, rounds)
        print(f"\nImageNet, {len(source)} JPEGs to {SIZE} px            best    median")
        print("images for each second of one core's time")
        print_rates(one, by_core=True)
        if tf_python:
            print_ratio(one, "ours", "tf.data")
            print_ratio(one, "ours, resizer='pillow'", "tf.data")
        print(f"images/s by the clock, all {cores} cores")
        print_rates(every, by_core=False)
        if not tf_python:
            print("(tf.data is left out: --tf_python names no Python that has TensorFlow)")
            return
        print(f"TensorFlow {peers['one'].ask('pixels')['tensorflow']}")
        compare_pixels(source, config, batch_rows, np.load(folder / "pixels.npy"))


def compare_pixels(
    source: HeldSource, config: ImagesConfig, batch_rows: BatchRows, theirs: np.ndarray
) -> None:
    """Prints how far the pixels are from tf.data's, with and without decoding at a lower scale."""

    def pixels(with_config: ImagesConfig) -> np.ndarray:
        make_chunk = TrainChunks(ImageSplit(source, with_config), batch_rows, SEED)
        return np.concatenate([make_chunk(e)["image"] for e in range(len(source) // BATCH)])

    pillow = dataclasses.replace(config, resizer="pillow")
    ours = pixels(config)
    with mock.patch.object(images, "DRAFT_MARGIN", 10**6):
        full = pixels(config)
        full_pillow = pixels(pillow)
    print("\ngray levels of difference                           everywhere      inside the border")
    print(f"  {'':44}{'mean':>10}{'max':>10}{'mean':>10}{'max':>10}{'above 2':>10}")
    print_difference("ours to tf.data", ours, theirs)
    print_difference("ours, always decoded in full, to tf.data", full, theirs)
    print_difference("Pillow, always decoded in full, to tf.data", full_pillow, theirs)
    print_difference("ours to Pillow, both decoded in full", full, full_pillow)
    drafted = (ours != full).any(axis=(1, 2, 3))
    print(f"  decoded at a lower scale: {drafted.sum()} of {len(ours)} images")
    if drafted.any():
        print_difference("  those, to their full decoding", ours[drafted], full[drafted])


def measure_cifar(data_dir: str, rounds: int) -> None:
    """Prints the rows of CIFAR-10 in memory."""
    config = ImagesConfig(image_size=32, in_memory=True)
    held = MemorySplit(ImageSplit(TfdsSource("cifar10", "train[:20000]", data_dir), config))
    make_chunk = TrainChunks(held, BatchRows(256, 0, 1, 256), SEED)
    one = take_turns({"ours": lambda: alone(make_chunk, 200)}, rounds)
    every = take_turns({"ours": lambda: together(held, config, 60)}, rounds)
    print("\nCIFAR-10 in memory, crop, resize and flip at 32 px    best    median")
    print("images for each second of one core's time")
    print_rates(one, by_core=True)
    print(f"images/s by the clock, all {len(os.sched_getaffinity(0))} cores, as training has them")
    print_rates(every, by_core=False)


def take_turns(contestants: dict[str, Callable[[], Round]], rounds: int) -> dict[str, list[Round]]:
    """`rounds` measurements of each, one after the other, after one that does not count."""
    for run in contestants.values():
        run()
    results: dict[str, list[Round]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            results[name].append(run())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="holds imagenet2012 and cifar10 (TFDS)")
    parser.add_argument("--tf_python", default="", help="a Python that has TensorFlow")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        if flags.rounds < 1:
            raise ValueError(f"--rounds={flags.rounds} must be at least 1")
        if flags.tf_python and not os.access(flags.tf_python, os.X_OK):
            raise ValueError(f"--tf_python={flags.tf_python} is no program")
    with one_line_errors(EXIT_ERROR, *USER_ERRORS):
        measure_imagenet(flags.data_dir, flags.tf_python, flags.rounds)
        measure_cifar(flags.data_dir, flags.rounds)


if __name__ == "__main__":
    main()
