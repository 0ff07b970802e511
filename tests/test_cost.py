import pathlib

import pytest

from darl_jax.config import default_config, from_file, load
from darl_jax.planning import records
from darl_jax.planning.tables import si
from tests.programs import call, imported

cost = imported("cost")

WIDTH, DEPTH, MLP, PATCH, TOKENS = 32, 2, 64, 16, 196


def imagenet(objective: str, **changes: object) -> records.TrainConfig:
    values = default_config(objective=objective)
    values.model.width, values.model.depth, values.model.mlp_dim = WIDTH, DEPTH, MLP
    values.model.num_heads, values.model.patch_size = 4, PATCH
    values.data.dataset = "imagenet2012"
    values.update_from_flattened_dict(changes)
    return load(values)


def test_hours_are_flops_at_half_of_the_peak() -> None:
    assert cost.hours(989.4e12 / 2 * 3600, "h100") == pytest.approx(1)
    assert cost.hours(275e12 * 3600, "v4") == pytest.approx(2)


def test_costs_of_a_run_follow_from_its_config_and_the_known_dataset() -> None:
    config = imagenet("mse", total_epochs=2.0, batch_size=1000)
    steps = round(2 * 1_281_167 / 1000)
    flops = config.method.flops() * steps * 1000
    assert cost.row("name", config, None, ["h100"])[2:6] == [
        si(config.method.flops()), f"{steps:,}", "2", si(flops),
    ]  # fmt: skip
    assert cost.row("name", config, 1000, ["h100"])[3] == "2"
    with pytest.raises(ValueError, match="--records=N"):
        cost.row("name", imagenet("mse", **{"data.dataset": "mine"}), None, ["h100"])


def test_parameters_are_those_of_the_layers_and_a_known_dataset_has_its_classes() -> None:
    pixels = 3 * PATCH**2
    block = 4 * WIDTH * (WIDTH + 1) + 2 * WIDTH * MLP + MLP + WIDTH + 4 * WIDTH
    backbone = (pixels + 1) * WIDTH + WIDTH + DEPTH * block + 2 * WIDTH  # start token, last norm
    model = {"model.positions": "rope2d"}
    assert cost.count_parameters(imagenet("mse", **model)) == backbone + (WIDTH + 1) * pixels
    classifier = records.with_classes(imagenet("classification", **model))
    assert cost.count_parameters(classifier) == backbone + (WIDTH + 1) * 1000
    with pytest.raises(ValueError, match=r"data\.data_dir"):
        records.with_classes(imagenet("classification", **{"data.dataset": "mine"}))


def test_the_program_prints_a_row_for_each_config(capsys) -> None:
    flags = "--config=configs/darl_vit_b16_mse.py", "--config.total_epochs=8"
    assert call("cost", "configs/digits.py:mse", *flags) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["config", "parameters"]
    assert first.split()[0] == "configs/darl_vit_b16_mse.py" and " 2,502 " in first
    assert second.split()[0] == "configs/digits.py:mse"


@pytest.mark.parametrize("word", ["mse", "diffusion", "aim", "mae", "next_embedding"])
def test_methods_that_are_compared_have_equal_training_flops(word: str) -> None:
    file = pathlib.Path(__file__).resolve().parents[1] / "configs" / "cifar10_methods.py"
    config = load(from_file(f"{file}:{word}"))
    total = config.method.flops() * config.batch_size * config.steps(50_000)
    assert total == pytest.approx(54e12, rel=1e-3)
