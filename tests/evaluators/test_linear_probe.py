import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.sources.base import BadRecordError, Record
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.evaluators import linear_probe as probe_lib
from darl_jax.evaluators.linear_probe import (
    Examples,
    LinearProbe,
    LinearProbeConfig,
    block_index,
    probe_accuracies,
)
from darl_jax.nn.patches import patchify, standardize
from tests.evaluators.tiny import MEAN, STD, make_batches, random_images, tiny_model

DIGITS = ImagesConfig(source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,))


def clusters(number, *, distance, seed):
    """Points around 4 corners; feature 1 is constant and feature 2 has another scale."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 4
    corner = np.stack([labels % 2, labels // 2], axis=-1) * distance
    features = rng.normal(size=(number, 2)) + corner
    constant = np.full((number, 1), 3.0)
    columns = [features[:, :1], constant, 1e4 * features[:, 1:]]
    return Examples(np.concatenate(columns, axis=1).astype(np.float32), labels.astype(np.int32))


def test_separable_features_are_recovered_and_noise_is_at_chance():
    config = LinearProbeConfig(labels_per_class=10, seeds=3)
    train, test = clusters(120, distance=20.0, seed=0), clusters(400, distance=20.0, seed=1)
    assert probe_accuracies(train, test, config) == [1.0, 1.0, 1.0]
    noise = np.mean(
        probe_accuracies(
            clusters(120, distance=0.0, seed=0), clusters(400, distance=0.0, seed=1), config
        )
    )
    assert noise == pytest.approx(0.25, abs=0.08)  # three standard errors of 400 draws


def test_training_sets_are_disjoint_and_balanced():
    """Examples that hold their own number; the classifier is a spy."""
    labels = np.repeat(np.arange(3), 8).astype(np.int32)
    seen = []

    class Spy:
        n_iter_ = np.array([1])

        def __init__(self, **kwargs):
            pass

        def fit(self, features, labels):
            seen.append((features[:, 0], labels))

        def predict(self, features):
            return np.zeros(len(features))

    train = Examples(np.arange(24, dtype=np.float32)[:, None], labels)
    config = LinearProbeConfig(labels_per_class=2, seeds=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.linear_model.LogisticRegression", Spy)
        patch.setattr("sklearn.preprocessing.StandardScaler.transform", lambda self, x: x)
        probe_accuracies(train, train, config)
    assert len(seen) == 4
    for _, chosen in seen:
        np.testing.assert_array_equal(np.bincount(chosen), [2, 2, 2])
    np.testing.assert_array_equal(
        np.sort(np.concatenate([rows for rows, _ in seen])), np.arange(24)
    )


def test_a_classifier_that_does_not_converge_is_a_warning_and_has_a_score(monkeypatch, caplog):
    """A training run must not end for it."""
    monkeypatch.setattr(probe_lib, "_MAX_ITERATIONS", 1)
    train = clusters(40, distance=20.0, seed=0)
    with pytest.warns(match="failed to converge"):
        scores = probe_accuracies(train, train, LinearProbeConfig(labels_per_class=5, seeds=2))
    assert len(scores) == 2
    assert min(scores) > 0.5
    assert "did not converge in 1 iterations" in caplog.text


def test_relative_depth_names_a_block():
    cases = [(0.5, 12), (0.5, 4), (0.5, 1), (1.0, 12), (0.01, 12), (0.5, 5)]
    assert [block_index(*case) for case in cases] == [5, 1, 0, 11, 0, 2]


# --- training records ----------------------------------------------------------------------------


class ListSource(DigitsSource):
    """Digits with other labels; -2 stands for a record that cannot be read."""

    def __init__(self, labels, num_classes):
        super().__init__("train")
        self.dataset, self.given = "things", labels
        self.class_names = tuple(map(str, range(num_classes)))

    def __len__(self):
        return len(self.given)

    def read(self, index):
        for number in index:
            if self.given[number] == -2:
                raise BadRecordError(self.dataset, self.split, number, "a shard", "it is cut off")
        return [Record(np.zeros((1, 1, 1), np.uint8), self.given[i], f"thing {i}") for i in index]


def chosen_records(source, on_bad_record="error", **config):
    split = ImageSplit(source, dataclasses.replace(DIGITS, on_bad_record=on_bad_record))
    return probe_lib.training_records(split, LinearProbeConfig(**config))


def test_training_records_are_balanced_distinct_and_from_the_whole_dataset():
    records = chosen_records(DigitsSource("train"), labels_per_class=3, seeds=4)
    assert len(records) == len(set(records.chosen.tolist())) == 120
    np.testing.assert_array_equal(np.bincount(records.labels(np.arange(120))), [12] * 10)
    assert (records.chosen < 200).sum() < 60


def test_training_records_that_cannot_be_read_are_passed_over_where_bad_ones_are_skipped():
    source = ListSource([-2 if number % 3 == 0 else number % 2 for number in range(30)], 2)
    chosen = chosen_records(source, "skip", labels_per_class=2, seeds=5)
    assert set(chosen.chosen.tolist()) == {number for number in range(30) if number % 3}
    with pytest.raises(BadRecordError, match=r"things, split 'train', record .* it is cut off"):
        chosen_records(source, labels_per_class=2, seeds=5)


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0] * 20 + [1] * 5, 2, "has 5 records of class 1, .* needs 6 of each class"),
        ([0] * 20 + [-1] * 20, 2, "has 0 records of class 1"),
    ],
)
def test_too_few_labels_are_an_error_that_names_the_class(labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        chosen_records(ListSource(labels, num_classes), labels_per_class=3, seeds=2)


# --- the whole -----------------------------------------------------------------------------------


def make_probe(tiny, config, images, labels, initial_params=lambda: tiny_model(seed=5).params):
    return LinearProbe(
        config,
        tiny.context(initial_params=initial_params),
        training=make_batches(images, 7, labels, padding=255),
        test=make_batches(images, 9, labels, padding=255),
    )


def two_classes(number=40):
    """Dark and bright images."""
    labels = np.arange(number) % 2
    return (random_images(number) // 4 + 180 * labels[:, None, None, None]).astype(np.uint8), labels


def test_the_probe_compares_pretrained_random_and_pixels(tiny):
    images, labels = two_classes()
    config = LinearProbeConfig(labels_per_class=5, seeds=2)
    results = dict(make_probe(tiny, config, images, labels).run(tiny.params, 0))
    assert set(results) == {
        f"{name}/accuracy_{part}"
        for name in ("pretrained", "random", "pixels")
        for part in ("mean", "std")
    }
    assert results["pixels/accuracy_mean"] == 1.0
    assert results["pretrained/accuracy_mean"] == 1.0
    line = make_probe(tiny, config, images, labels).summary(results)
    assert "pretrained 1.000 ± 0.000" in line
    assert "5 labels a class" in line


def test_baselines_are_computed_once_and_those_not_asked_for_never(tiny):
    images, labels = two_classes()
    made = []

    def initial_params():
        made.append(1)
        return tiny.params

    config = LinearProbeConfig(labels_per_class=5, seeds=2, baselines=("random",))
    probe = make_probe(tiny, config, images, labels, initial_params=initial_params)
    first, second = (dict(probe.run(tiny.params, 0)) for _ in range(2))
    assert first == second
    assert len(made) == 1
    assert not any("pixels" in name for name in first)
    # The same parameters under both names.
    assert first["random/accuracy_mean"] == first["pretrained/accuracy_mean"]


@pytest.mark.parametrize(("pooling", "relative_depth"), [("mean", 0.3), ("last", 1.0)])
def test_features_are_the_named_blocks_with_every_patch_as_input(tiny, pooling, relative_depth):
    images, labels = two_classes(10)
    config = LinearProbeConfig(
        labels_per_class=1, seeds=1, pooling=pooling, relative_depth=relative_depth
    )
    probe = make_probe(tiny, config, images, labels)
    examples = probe._read_backbone(tiny.params, probe._training)
    backbone = nnx.merge(tiny.graphdef, tiny.params).backbone
    patches = patchify(standardize(jnp.asarray(images), MEAN, STD), 2)
    assert patches.shape[1] == 16
    block = backbone(patches, mask="causal").blocks[{0.3: 0, 1.0: 2}[relative_depth]]
    expected = block[:, -1] if pooling == "last" else block[:, 1:].mean(axis=1)
    np.testing.assert_allclose(examples.block(0), expected, atol=2e-5)
    np.testing.assert_array_equal(examples.labels, labels)


def test_examples_are_in_the_order_of_records_however_they_come(tiny):
    images, labels = two_classes(12)
    ordered = make_batches(images, 4, labels)

    def shuffled():
        for batch in reversed(list(ordered())):
            yield {name: values[::-1] for name, values in batch.items()}

    probe = make_probe(tiny, LinearProbeConfig(), images, labels)
    one = probe._read_pixels(None, ordered)
    other = probe._read_pixels(None, shuffled)
    np.testing.assert_array_equal(one.block(0), other.block(0))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(
        one.block(0), ((images / 255.0 - MEAN[0]) / STD[0]).reshape(12, -1), atol=1e-5
    )
