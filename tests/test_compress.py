"""The program: from a checkpoint and files to compressed files and back, and its messages."""

import pathlib
import signal

import numpy as np
import pytest
from PIL import Image

from darl_jax.codec import tables
from darl_jax.codec.file_format import parse
from darl_jax.data.audio.wav import wav_bytes
from tests.codec.tiny_models import images, logits, save, sound, text
from tests.programs import call, finish, refusal, start

pytest.importorskip("constriction", reason="there is no wheel for this machine")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return save(images(levels=17, branching=4), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("array") / "a.npy"
    levels = np.random.default_rng(0).integers(0, 17, (5, 4, 4, 1))
    np.save(path, np.rint(levels * 255 / 16).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def packed(run, array, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("packed") / "a.ardm"
    assert compress(run, array, path, "--lanes=3", "--orders=2") == 0
    return path


def compress(run, source, output, *arguments) -> int:
    return call(
        "compress", "compress", f"--checkpoint={run}", f"--input={source}", f"--output={output}",
        "--steps=3", *arguments,
    )  # fmt: skip


def decompress(run, source, output, *arguments) -> int:
    return call(
        "compress", "decompress", f"--checkpoint={run}", f"--input={source}",
        f"--output={output}", *arguments,
    )  # fmt: skip


def test_an_array_comes_back_with_any_number_of_lanes(run, array, packed, tmp_path, capsys):
    assert decompress(run, packed, tmp_path / "b.npy", "--lanes=1") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.load(array), strict=True)
    verifying = ["verify", f"--checkpoint={run}", f"--input={packed}", f"--original={array}"]
    assert call("compress", *verifying) == 0
    assert "5 items are whole, by the digests and" in capsys.readouterr().out
    assert call("compress", "info", f"--input={packed}") == 0
    told = capsys.readouterr().out
    assert "portable (float64)" in told and "whole (its checksums are right)" in told
    assert compress(run, array, tmp_path / "again.ardm", "--lanes=3", "--orders=2") == 0
    assert (tmp_path / "again.ardm").read_bytes() == packed.read_bytes()


def test_pictures_come_back_as_a_folder_of_pictures(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for side in (3, 6):
        levels = np.random.default_rng(side).integers(0, 17, (side, 5))
        pixels = np.rint(levels * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{side}.png")
    assert compress(run, photos, tmp_path / "p.ardm") == 0
    assert decompress(run, tmp_path / "p.ardm", tmp_path / "back") == 0
    for number, side in enumerate((3, 6)):
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "back" / f"{number:05d}.png")),
            np.asarray(Image.open(photos / f"{side}.png")),
        )


def test_texts_and_sounds_come_back_byte_by_byte(tmp_path):
    originals = tmp_path / "a.txt", tmp_path / "a.wav"
    originals[0].write_bytes(b"a text of some length")
    originals[1].write_bytes(wav_bytes(np.arange(-30, 1000, 61, np.int16), 11025))
    for config, path in zip((text(), sound()), originals, strict=True):
        workdir = save(config, tmp_path / f"run{path.suffix}")
        packed = tmp_path / f"{path.suffix}.ardm"
        assert compress(workdir, path, packed) == 0
        assert decompress(workdir, packed, tmp_path / f"back{path.suffix}") == 0
        assert (tmp_path / f"back{path.suffix}").read_bytes() == path.read_bytes()


def test_what_is_whole_of_a_damaged_file_can_be_salvaged(run, array, packed, tmp_path, capsys):
    data = bytearray(packed.read_bytes())
    header = parse(bytes(data), "file").header_bytes
    data[header] ^= 255  # the first word of the first stream
    for name, damaged in (("flipped", bytes(data)), ("cut", packed.read_bytes()[:-9])):
        path = tmp_path / f"{name}.ardm"
        path.write_bytes(damaged)
        message = refusal(
            capsys, "compress", "decompress", f"--checkpoint={run}", f"--input={path}",
            f"--output={tmp_path / 'b.npy'}",
        )  # fmt: skip
        assert "--salvage" in message
        assert not (tmp_path / "b.npy").exists()
        lost = {"flipped": 0, "cut": 4}[name]
        assert decompress(run, path, tmp_path / f"{name}.npy", "--salvage") == 1
        assert f"(the first are number {lost})" in capsys.readouterr().err
        expected = np.load(array)
        expected[lost] = 0
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


def test_wrong_arguments_are_one_line(run, array, packed, tmp_path, capsys, tiny_run):
    output = f"--output={tmp_path / 'out'}"
    flags = [f"--checkpoint={run}", output]
    for message, *arguments in (
        ("no command: the command is one of compress, decompress, info, verify", *flags),
        ("pack: the command is one of", "pack", *flags),
        ("--checkpoint, --input and --output are needed", "compress", *flags),
        ("there is no file", "compress", *flags, "--input=absent.npy"),
        ("65 calls cannot make 16 steps", "compress", *flags, f"--input={array}", "--steps=65"),
        ("is a NumPy array, and no file that", "decompress", *flags, f"--input={array}"),
        ("--lanes and --orders must be", "compress", *flags, f"--input={array}", "--lanes=0"),
        (
            "config.objective.name='mse'; only models of 'ardm'",
            *("compress", f"--checkpoint={tiny_run}", output, f"--input={array}"),
        ),
    ):
        assert message in refusal(capsys, "compress", *arguments)
    (tmp_path / "out").write_text("mine")
    assert "exists" in refusal(capsys, "compress", "compress", *flags, f"--input={array}")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.process
def test_another_machine_decodes_the_portable_mode_and_refuses_the_fast_one(
    run, array, packed, tmp_path
):
    """Instructions without AVX and FMA stand for another machine; their sums differ."""
    assert compress(run, array, tmp_path / "fast.ardm", "--fast") == 0
    assert decompress(run, tmp_path / "fast.ardm", tmp_path / "fast.npy") == 0
    flags = [f"--checkpoint={run}", "--lanes=2"]
    code = f"""
import pathlib
import numpy as np
from tests.codec.tiny_models import logits
from tests.programs import call
flags = {flags!r}
portable = call("compress", "decompress", *flags, "--input={packed}", "--output={tmp_path}/b.npy")
again = call("compress", "compress", *flags, "--input={array}", "--output={tmp_path}/b.ardm",
             "--steps=3", "--orders=2", "--lanes=3")
fast = call("compress", "decompress", *flags, "--input={tmp_path}/fast.ardm",
            "--output={tmp_path}/c.npy")
np.save("{tmp_path}/logits.npy", [logits(pathlib.Path("{run}"), rows) for rows in (8, 1)])
print(portable, again, fast)
"""
    isa = "--xla_cpu_max_isa=SSE4_2 --xla_cpu_multi_thread_eigen=false"
    output, errors = finish(start("-c", code, XLA_FLAGS=isa))
    assert output.splitlines()[-1] == "0 0 2"
    assert "written in the fast mode" in errors
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.load(array), strict=True)
    assert (tmp_path / "b.ardm").read_bytes() == packed.read_bytes()
    here, there = logits(run, 8), np.load(tmp_path / "logits.npy")
    assert here.dtype == there.dtype == np.float64
    differences = [np.abs(x - here).max() for x in (*there, logits(run, 1))]
    assert 0 < max(differences) < tables.GUARDS[0] / 20


@pytest.mark.process
def test_a_kill_while_writing_leaves_nothing_under_the_final_name(tmp_path):
    code = f"""
import os, pathlib, time
os.fsync = lambda descriptor: (print("writing", flush=True), time.sleep(60))
from darl_jax.codec.writing import write_whole
write_whole(pathlib.Path("{tmp_path}/file.ardm"), bytes(1000))
"""
    process = start("-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "file.ardm").exists()
    assert len([*tmp_path.iterdir()]) == 1  # the temporary file
