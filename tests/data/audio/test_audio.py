"""Folders of WAV files: splits, padding, cropping and what is refused."""

import pickle
import wave

import numpy as np
import pytest
from etils import epath

from darl_jax.data import pipeline
from darl_jax.data.audio.config import AudioConfig
from darl_jax.data.audio.wav import read_wav, wav_bytes


def write(path, samples, rate=16000, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, f"<i{width}").tobytes())


def test_samples_are_16_bits_around_the_middle_padded_with_silence(tmp_path):
    for name in ("train", "validation"):
        write(tmp_path / name / "a.wav", [-32768, 0, 32767])
    config = AudioConfig(data_dir=str(tmp_path), length=5)
    train, _ = config.open()
    clip = train.eval_examples(np.zeros(1, np.int64))["sound"]
    assert clip.dtype == np.uint16 and clip[0, :, 0].tolist() == [0, 32768, 65535, 32768, 32768]
    assert config.integers.levels == 65536


def test_longer_clips_are_cropped_anywhere_in_training_and_at_the_beginning_else(tmp_path):
    for name in ("train", "validation"):
        write(tmp_path / name / "a.wav", np.arange(30))
    split, _ = AudioConfig(data_dir=str(tmp_path), length=20).open()
    zero = np.zeros(1, np.int64)
    begins = [
        int(split.train_examples(zero, zero + epoch, 0)["sound"][0, 0, 0]) - 32768
        for epoch in range(80)
    ]
    assert {*begins} == {*range(11)}
    assert split.eval_examples(zero)["sound"][0, 0, 0] == 32768
    copy = pickle.loads(pickle.dumps(split))
    found = copy.train_examples(zero, zero + 79, 0)["sound"][0, 0, 0]
    assert int(found) - 32768 == begins[-1]


def test_speech_commands_has_its_own_lists_and_a_plain_folder_is_cut_once(tmp_path):
    speech = tmp_path / "speech"
    for word in ("zero", "nine", "cat", "_background_noise_"):
        for number in range(3):
            write(speech / word / f"{number}.wav", [number])
    (speech / "validation_list.txt").write_text("zero/1.wav\ncat/1.wav\n")
    (speech / "testing_list.txt").write_text("nine/2.wav\n")
    config = AudioConfig(data_dir=str(speech), words=("zero", "nine"), length=4)
    train, validation = config.open()
    assert (len(train), len(validation)) == (4, 1)
    assert "zero/1.wav" in validation.describe(np.zeros(1, np.int64))
    every = AudioConfig(data_dir=str(speech), words=(), length=4)
    assert len(every.open().train) == 6
    plain = tmp_path / "plain"
    for number in range(40):
        write(plain / f"{number}.WAV" if number % 2 else plain / "deep" / f"{number}.wav", [number])
    names = []
    for split in ("train", "validation", "test"):
        config = AudioConfig(data_dir=str(plain), train_split=split, length=4)
        part = config.open_split("train_split")
        names.append({part.describe(np.array([i])) for i in range(len(part))})
    assert [len(each) for each in names] == [36, 2, 2]


def test_batches_of_audio_come_through_the_pipeline(tmp_path):
    for number in range(6):
        write(tmp_path / "train" / f"{number}.wav", [number] * 4)
    write(tmp_path / "validation" / "a.wav", [1])
    config = AudioConfig(data_dir=str(tmp_path), length=4, num_workers=0)
    batches = pipeline.train_batches(
        config.open().train, config, batch_size=6, seed=0, start_step=0
    )
    batch = next(batches)
    batches.close()
    np.testing.assert_array_equal(batch["sound"][:, 0, 0], 32768 + batch["index"])


def test_a_file_that_was_written_is_read_back(tmp_path):
    samples = np.array([5, -7, 32767, -32768], np.int16)
    path = epath.Path(tmp_path / "x.wav")
    path.write_bytes(wav_bytes(samples, 8000))
    np.testing.assert_array_equal(read_wav(path, 8000), samples)


def test_other_kinds_of_audio_are_one_error_with_file_and_rule(tmp_path):
    cases = {
        "2 channels of 16 bits at 16000 Hz": {"samples": [1, 2], "channels": 2},
        "1 channels of 16 bits at 8000 Hz, and must": {"samples": [1], "rate": 8000},
        "1 channels of 32 bits": {"samples": [1], "width": 4},
    }
    for number, (message, keys) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        write(folder / "train" / "a.wav", **keys)
        with pytest.raises(ValueError, match=rf"record 0 \(train/a.wav\).*{message}"):
            AudioConfig(data_dir=str(folder), length=4).open()
    noise = tmp_path / "noise" / "train" / "a.wav"
    noise.parent.mkdir(parents=True)
    noise.write_bytes(b"no audio at all")
    with pytest.raises(ValueError, match="cannot be read as WAV"):
        AudioConfig(data_dir=str(tmp_path / "noise"), length=4).open()
    with pytest.raises(ValueError, match="is no folder; give one of WAV files"):
        AudioConfig(data_dir=str(tmp_path / "none")).open()
    write(tmp_path / "half" / "train" / "a.wav", [1])
    with pytest.raises(ValueError, match=r"validation_split='validation' of .* holds no WAV file"):
        AudioConfig(data_dir=str(tmp_path / "half"), length=4).open()
