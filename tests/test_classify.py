"""From a fine-tuned run, or an export of it, to names and probabilities of photos."""

import csv

import numpy as np
import pytest
from PIL import Image

from darl_jax.monitoring.writers import read_metrics
from tests.programs import call, refusal
from tests.tiny_runs import tiny


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The validation split's images as files, which hold the digit in their names."""
    folder = tmp_path_factory.mktemp("photos")
    split = tiny().data.open().validation
    records = np.arange(len(split))
    pixels, labels = split.eval_examples(records)["image"], split.labels(records)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03d}_is_{label}.png")
    return folder


def classified(checkpoint, photos, output, *arguments):
    flags = f"--checkpoint={checkpoint}", f"--images={photos}", f"--output={output}"
    assert call("classify", *flags, *arguments) == 0
    with (output / "predictions.csv").open() as opened:
        return [*csv.DictReader(opened)]


def test_a_line_for_each_photo_has_the_likeliest_classes_first(fine_tuned, photos, tmp_path):
    rows = classified(fine_tuned, photos, tmp_path)
    assert [row["image"].rsplit("/", 1)[1] for row in rows] == sorted(
        path.name for path in photos.iterdir()
    )
    for row in rows:
        shares = [float(row[f"probability_{rank}"]) for rank in range(1, 6)]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1
        assert len({row[f"class_{rank}"] for rank in range(1, 6)} & set("0123456789")) == 5
    right = [row["class_1"] == row["image"][-5] for row in rows]
    written = {name: value for line in read_metrics(fine_tuned) for name, value in line.items()}
    assert np.mean(right) == pytest.approx(written["validation/accuracy"], abs=1e-6)
    assert Image.open(tmp_path / "predictions.png").width > 1000
    # All classes, in batches of another size.
    others = classified(fine_tuned, photos, tmp_path / "64", "--top=10", "--batch_size=64")
    for row, other in zip(rows, others, strict=True):
        shares = {other[f"class_{r}"]: float(other[f"probability_{r}"]) for r in range(1, 11)}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        for rank in range(1, 6):
            expected = shares[row[f"class_{rank}"]]
            assert float(row[f"probability_{rank}"]) == pytest.approx(expected, abs=1e-5)


def test_an_export_keeps_the_names_of_the_classes(fine_tuned, photos, tmp_path):
    to = "--format=safetensors", f"--output={tmp_path / 'exported'}"
    assert call("export", f"--checkpoint={fine_tuned}", *to) == 0
    ours = classified(fine_tuned, photos, tmp_path / "ours")
    exported = classified(tmp_path / "exported", photos, tmp_path / "theirs")
    assert exported == ours


def test_what_cannot_be_classified_is_one_line(tiny_run, fine_tuned, photos, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    arguments = f"--checkpoint={tiny_run}", f"--images={photos}", output
    assert "config.objective.name='mse', which has no classes" in refusal(
        capsys, "classify", *arguments
    )
    nothing = f"--checkpoint={fine_tuned}", f"--images={tmp_path / 'none'}", output
    assert "there is no file or folder" in refusal(capsys, "classify", *nothing)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = f"--checkpoint={fine_tuned}", f"--images={tmp_path / 'broken.png'}", output
    assert "broken.png cannot be decoded" in refusal(capsys, "classify", *broken)
    assert "--checkpoint, --images and --output are needed" in refusal(capsys, "classify")
    assert not (tmp_path / "out").exists()
