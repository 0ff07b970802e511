"""From a run to a folder of images: what is written, and the message of whatever is wrong."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from darl_jax.generation.sampling import Wanted, measured_error, sample
from PIL import Image

from darl_jax.evaluators.schedule import held_out, read_config, restored_params
from darl_jax.interchange.loading import LoadedModel, load_model
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import graph_definition
from tests.tiny_runs import run, tiny

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SAMPLER = SamplerConfig(steps=4)
WANTED = Wanted(SAMPLER)


def trained(folder: pathlib.Path, **changes) -> LoadedModel:
    config = tiny(total_steps=2, evaluation__loss_every_steps=0, model__patch_size=2, **changes)
    assert run(config, folder) == 0
    return load_model(str(folder))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LoadedModel:
    """A run of diffusion that samples as it ends."""
    return trained(
        tmp_path_factory.mktemp("diffusion"),
        objective="diffusion",
        sampler__steps=4,
        evaluation__samples_every_steps=2,
        evaluation__samples__number=3,
        evaluation__samples__completed=2,
        evaluation__samples__completions=2,
    )


@pytest.fixture(scope="module")
def squared_error(tmp_path_factory) -> LoadedModel:
    return trained(tmp_path_factory.mktemp("mse"), evaluation__samples_every_steps=2)


def make(loaded: LoadedModel, output: pathlib.Path, **wanted) -> dict[str, np.ndarray]:
    config = read_config(None, loaded)
    path = sample(config, loaded, dataclasses.replace(WANTED, **wanted), str(output))
    with np.load(path / "samples.npz") as arrays:
        return dict(arrays)


def pictures(loaded: LoadedModel) -> dict[str, tuple[int, ...]]:
    folder = pathlib.Path(loaded.description.split(" of ")[1]) / "pictures"
    return {path.name.split("_")[0]: Image.open(path).size for path in folder.iterdir()}


def test_a_run_ends_with_samples_and_completions(model, squared_error):
    cell = 72  # 8 pixels, magnified by 8, and a gap around
    assert pictures(model) == {"samples": (2 * cell, 2 * cell), "completions": (3 * cell, 2 * cell)}
    # The mean is the same each time: one from nothing, and one for each original.
    assert pictures(squared_error) == {"samples": (cell, cell), "completions": (2 * cell, 8 * cell)}


def test_images_do_not_depend_on_the_batch_size(model, tmp_path):
    one = make(model, tmp_path / "one", number=5, batch_size=5)["images"]
    other = make(model, tmp_path / "other", number=5, batch_size=2)["images"]
    assert one.shape == (5, 8, 8, 1)
    assert np.abs(one.astype(int) - other).max() <= 1


def test_completions_keep_half_of_the_held_out_images(model, tmp_path):
    made = make(model, tmp_path / "out", validation_images=3, completions=2)
    config = read_config(None, model)
    originals = held_out(config, config.data.open().validation, 3)
    np.testing.assert_array_equal(made["originals"], originals)
    assert (made["images"][:, :, :4] == originals[:, None, :4]).all()
    assert (made["images"][:, :, 4:] != originals[:, None, 4:]).any()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["known"] == 8
    assert settings["sampler"]["steps"] == 4


def test_files_are_completed_from_the_patches_that_are_known(model, tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "gray.png")
    made = make(
        model, tmp_path / "out", images=(str(tmp_path / "gray.png"),), known=1, completions=1
    )
    image = made["images"][0, 0, ..., 0]
    assert (image[:2, :2] == 200).all()
    assert (image != 200).any()
    assert (tmp_path / "out" / "gray_0000.png").exists()


def test_squared_error_makes_images_without_a_sampler(squared_error, tmp_path):
    made = make(squared_error, tmp_path / "out", number=2)["images"]
    np.testing.assert_array_equal(made[0], made[1])
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["sampler"] is None


def test_analytic_variance_is_measured_on_training_images_at_any_number_of_steps(model, tmp_path):
    config = read_config(None, model)
    mesh = make_mesh(config.mesh)
    params = restored_params(config, model, mesh)
    graphdef = graph_definition(config.method.init)
    error = measured_error(config, SamplerConfig(steps=8), graphdef, params, mesh)
    whole, half = error(8), error(4)
    assert whole.shape == (8, 4)
    assert (whole > 0).all()
    np.testing.assert_allclose(half, whole[1::2], rtol=1e-12)
    analytic = SamplerConfig(steps=4, variance="analytic")
    one, other = (
        make(model, tmp_path / name, sampler=sampler)["images"]
        for name, sampler in (("analytic", analytic), ("posterior", SAMPLER))
    )
    assert (one != other).any()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"validation_images": 1, "known": 16}, "16 patches are given, .* 4 x 4 has 16"),
        ({"images": ("wide.png",)}, "wide.png has 4 x 6 pixels, and the model makes images of 8"),
        ({"order": "spiral"}, "the model knows the order 'raster' alone"),
        ({"region": "0:2,0:2"}, "--region and --known keep patches of images"),
        ({"known": 3}, "--region and --known keep patches of images"),
        ({"images": ("a",), "validation_images": 1}, "give --images or --validation_images"),
        ({"region": "0:2,0:2", "known": 2, "validation_images": 1}, "leave --order and --known"),
        ({"region": "0:2,0:2", "validation_images": 1}, "the model knows the order 'raster' alone"),
        ({"validation_images": 1, "completions": 0}, "--completions=0 must be at least 1"),
        ({"batch_size": 0}, "--batch_size=0 must be a positive multiple of the 1 devices"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_no_folder(
    model, tmp_path, monkeypatch, wanted, message
):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (6, 4)).save("wide.png")
    with pytest.raises(ValueError, match=message):
        make(model, tmp_path / "out", **wanted)
    assert not (tmp_path / "out").exists()


def test_a_sampler_is_nothing_for_a_model_without_a_denoising_decoder(squared_error, tmp_path):
    with pytest.raises(ValueError, match="no denoising patch decoder, which the sampler 'ddpm'"):
        make(squared_error, tmp_path / "out", sampler_is_asked=True)


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "darl_jax.sample", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_program_makes_the_same_images_on_any_number_of_devices(model, tmp_path):
    folder = model.description.split(" of ")[1]
    done = program(
        f"--checkpoint={folder}", f"--output={tmp_path / 'four'}", "--number=8", "--batch_size=8",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = make(model, tmp_path / "one", number=8)["images"]
    with np.load(tmp_path / "four" / "samples.npz") as arrays:
        assert np.abs(arrays["images"].astype(int) - one).max() <= 1


def test_program_says_in_one_line_what_is_wrong_with_a_flag(model):
    folder = model.description.split(" of ")[1]
    done = program(f"--checkpoint={folder}", "--output=unused", "--sampler.steps=0")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("I")]
    assert errors == ["error: sampler.steps=0 must be at least 1"]
