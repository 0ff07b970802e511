"""k-NN against scikit-learn's in float64, and each query counted once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.neighbors import KNeighborsClassifier

from darl_jax.evaluators import knn as knn_lib
from darl_jax.evaluators.knn import (
    Knn,
    KnnConfig,
    centered_directions,
    nearest_labels,
)
from darl_jax.nn.patches import patchify, standardize
from darl_jax.training.sharding import MeshConfig, make_mesh
from tests.evaluators.tiny import MEAN, STD, make_batches, random_images


def random_directions(number, width=8, seed=0):
    x = np.random.default_rng(seed).normal(size=(number, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def by_scikit_learn(bank, labels, queries, *, neighbors, temperature):
    """Scores of each class (their shares of all votes), in float64."""
    classifier = KNeighborsClassifier(
        neighbors,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1.0 - distance) / temperature),
    )
    classifier.fit(np.float64(bank), labels)
    return classifier.predict_proba(np.float64(queries))


def clear_winners(shares):
    """The winners, and where they win by more than float32 could decide otherwise."""
    first, second = np.sort(shares, axis=1)[:, :-3:-1].T
    return np.argmax(shares, axis=1), first - second > 1e-4


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.07), (20, 0.07), (50, 1.0)])
@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_votes_are_those_of_scikit_learn_in_blocks_of_any_size(
    monkeypatch, rows, neighbors, temperature
):
    monkeypatch.setattr(knn_lib, "_SIMILARITIES", 101 * rows)
    bank, queries = random_directions(101), random_directions(90, seed=1)
    labels = np.random.default_rng(2).integers(0, 4, 101)
    mesh = make_mesh(MeshConfig())
    options = {"neighbors": neighbors, "temperature": temperature}
    found = nearest_labels(bank, labels, queries, mesh=mesh, **options)
    expected, clear = clear_winners(by_scikit_learn(bank, labels, queries, **options))
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_a_near_neighbor_outvotes_several_that_are_far():
    angle = np.float32([0.1, 1.0, 1.0, 1.0])
    bank = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels, query = np.array([2, 1, 1, 1]), np.float32([[1.0, 0.0]])
    vote = lambda t: nearest_labels(  # noqa: E731
        bank, labels, query, neighbors=4, temperature=t, mesh=make_mesh(MeshConfig())
    )
    # Weights exp(0.995 / t) against 3 exp(0.540 / t): equal at t = 0.455 / ln 3 = 0.414.
    assert vote(0.40) == [2]
    assert vote(0.43) == [1]


def test_between_equals_the_first_of_the_bank_and_the_smaller_label_win():
    bank, query = np.ones((5, 1), np.float32), np.ones((1, 1), np.float32)
    mesh = make_mesh(MeshConfig())
    options = {"temperature": 0.07, "mesh": mesh}
    labels = np.array([3, 1, 0, 0, 0])
    assert nearest_labels(bank, labels, query, neighbors=1, **options) == [3]
    assert nearest_labels(bank, labels, query, neighbors=2, **options) == [1]


def test_features_are_centered_by_the_banks_mean_and_have_length_one():
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(50.0, 1.0, (n, 8)).astype(np.float32) for n in (30, 20))
    for found, x in zip(centered_directions(bank, queries), (bank, queries), strict=True):
        centered = np.float64(x) - np.float64(bank).mean(axis=0)
        expected = centered / np.linalg.norm(centered, axis=1, keepdims=True)
        # float32 of 50 is known to 4e-6, and so is the difference of order 1.
        np.testing.assert_allclose(found, expected, atol=1e-5)
    same, _ = centered_directions(bank[:1], queries)
    np.testing.assert_array_equal(same, 0.0)


# --- the evaluator -------------------------------------------------------------------------------


def features(tiny, images, mask="causal"):
    """Mean over patches of every block's output, each image on its own, in float64."""
    backbone = nnx.merge(tiny.graphdef, tiny.params).backbone
    graphdef, state = nnx.split(backbone)

    @jax.jit
    def blocks(image):
        patches = patchify(standardize(image, MEAN, STD), 2)
        return nnx.merge(graphdef, state)(patches, mask=mask).blocks

    return np.stack(
        [np.float64(blocks(image[None]))[:, 0, 1:].mean(axis=1) for image in images], axis=1
    )


def evaluated(tiny, config, bank, queries):
    evaluator = Knn(config, tiny.context(), bank=bank, queries=queries)
    return dict(evaluator.run(tiny.params, 0))


CONFIG = KnnConfig(neighbors=5)


@pytest.fixture(scope="module")
def images():
    """Bank and queries with their labels."""
    rng = np.random.default_rng(3)
    bank, queries = random_images(40, seed=1), random_images(23, seed=2)
    return bank, rng.integers(0, 3, 40), queries, rng.integers(0, 3, 23)


@pytest.mark.parametrize(("batch_size", "mask"), [(4, "causal"), (9, "full"), (40, "causal")])
def test_every_block_has_scikit_learns_accuracy_whatever_the_batch_size(
    tiny, images, batch_size, mask
):
    bank, bank_labels, queries, labels = images
    found = evaluated(
        tiny,
        dataclasses.replace(CONFIG, mask=mask),
        make_batches(bank, batch_size, bank_labels, padding=255),
        make_batches(queries, batch_size, labels, padding=255),
    )
    of_bank, of_queries = features(tiny, bank, mask), features(tiny, queries, mask)
    assert list(found) == [f"accuracy/block_0{i}" for i in (1, 2, 3)]
    for i, accuracy in enumerate(found.values()):
        mean = of_bank[i].mean(axis=0)
        shares = by_scikit_learn(
            of_bank[i] - mean, bank_labels, of_queries[i] - mean, neighbors=5, temperature=0.07
        )
        expected, clear = clear_winners(shares)
        assert clear.all()
        assert accuracy == np.mean(expected == labels)


def test_examples_without_a_label_neither_vote_nor_count(tiny, images):
    bank, bank_labels, queries, labels = images
    some = np.arange(40) % 3 > 0
    unlabeled = np.where(some, bank_labels, -1), np.where(some[:23], labels, -1)
    found = evaluated(
        tiny,
        CONFIG,
        make_batches(bank, 8, unlabeled[0]),
        make_batches(queries, 8, unlabeled[1]),
    )
    expected = evaluated(
        tiny,
        CONFIG,
        make_batches(bank[some], 8, bank_labels[some]),
        make_batches(queries[some[:23]], 8, labels[some[:23]]),
    )
    assert found == expected


def test_images_that_are_in_the_bank_find_themselves(tiny, images):
    bank, bank_labels, _, _ = images
    batches = make_batches(bank, 16, bank_labels)
    found = evaluated(tiny, dataclasses.replace(CONFIG, neighbors=1), batches, batches)
    assert set(found.values()) == {1.0}


def test_too_small_a_bank_and_no_queries_are_errors(tiny, images):
    bank, bank_labels, _, _ = images
    few = make_batches(bank[:4], 4, bank_labels[:4])
    with pytest.raises(ValueError, match=r"neighbors=5 must not be more than the 4 labeled"):
        evaluated(tiny, CONFIG, few, few)
    enough = make_batches(bank, 8, bank_labels)
    nothing = make_batches(bank[:4], 4, np.full(4, -1))
    for bank_batches, query_batches in ((enough, nothing), (enough, list), (list, enough)):
        with pytest.raises(ValueError, match="holds no labeled example"):
            evaluated(tiny, CONFIG, bank_batches, query_batches)


def test_similarities_are_in_full_float32():
    """On accelerators a plain matmul would round features to bfloat16 or TF32."""
    mesh = make_mesh(MeshConfig())
    vote = knn_lib._voting(1, 0.07, 2, mesh)
    jaxpr = jax.make_jaxpr(vote)(jnp.ones((6, 4)), jnp.ones(6, jnp.int32), jnp.ones((8, 4)))
    assert str(jaxpr).count("dot_general") == 1
    assert "HIGHEST" in str(jaxpr)
