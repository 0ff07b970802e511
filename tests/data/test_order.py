"""The order of an epoch is a fair permutation, and random numbers are hashes of their keys."""

import numpy as np
import pytest
from scipy import stats

from darl_jax.data import order


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 10, 97, 1297, 4096, 50_000])
def test_each_position_goes_to_a_record_of_its_own(length: int) -> None:
    for seed in range(3):
        result = order.permute(np.arange(length), length, seed, 5)
        np.testing.assert_array_equal(np.sort(result), np.arange(length))


def test_every_record_is_equally_likely_at_every_position() -> None:
    length, draws = 12, 12_000
    seeds = np.arange(draws)
    counts = np.stack(
        [
            np.bincount(order.permute(np.full(draws, p), length, 3, seeds), minlength=length)
            for p in range(length)
        ]
    )
    # Chi-square over the whole table of (position, record).
    statistic = ((counts - draws / length) ** 2 / (draws / length)).sum()
    assert stats.chi2.sf(statistic, (length - 1) ** 2) > 1e-4


def test_neighbors_in_an_epoch_are_unrelated_records() -> None:
    result = order.permute(np.arange(20_000), 20_000, 0, 0)
    assert abs(np.corrcoef(result[:-1], result[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(np.arange(20_000), result)[0, 1]) < 0.03
    next_epoch = order.permute(np.arange(20_000), 20_000, 0, 1)
    assert abs(np.corrcoef(result, next_epoch)[0, 1]) < 0.03
    steps = np.diff(result) % 20_000
    assert stats.kstest(steps / 20_000, "uniform").pvalue > 1e-4


def test_uniforms_are_uniform_and_independent_of_each_other() -> None:
    draws = order.uniforms(0, np.zeros(20_000, np.int64), np.arange(20_000), 4)
    for column in range(4):
        assert stats.kstest(draws[:, column], "uniform").pvalue > 1e-4
    correlation = np.corrcoef(draws.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.03
    assert draws.min() >= 0 and draws.max() < 1


def test_uniforms_follow_from_seed_epoch_and_record_and_not_from_who_else_is_asked_for() -> None:
    epoch, index = np.array([3, 3, 9]), np.array([5, 8, 5])
    together = order.uniforms(1, epoch, index, 23)
    for i in range(3):
        alone = order.uniforms(1, epoch[i : i + 1], index[i : i + 1], 23)
        np.testing.assert_array_equal(together[i], alone[0])
    other_seed = order.uniforms(2, epoch, index, 23)
    assert len(np.unique([together, other_seed])) == 2 * together.size
