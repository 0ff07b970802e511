"""Policies against enumeration, and against the plain recursion."""

import itertools

import numpy as np
import pytest

from darl_jax.methods.ardm.policies import best_policy, even_policy, policy_cost


def plain(losses: np.ndarray, calls: int) -> list[int]:
    """The recursion of section 4 in loops; the first of several best."""
    steps = len(losses)
    cost, began = [[0.0] + [np.inf] * steps], []
    for _ in range(calls):
        paths = [
            [cost[-1][s] + (t - s) * losses[s] if s < t else np.inf for s in range(steps)]
            for t in range(steps + 1)
        ]
        began.append([int(np.argmin(row)) for row in paths])
        cost.append([min(row) for row in paths])
    policy, step = [], steps
    for row in reversed(began):
        step = row[step]
        policy.insert(0, step)
    return policy


def test_the_best_policy_is_the_cheapest_of_all():
    losses = np.random.default_rng(0).exponential(size=(3, 9))
    for calls in (1, 2, 4, 9):
        for of_stage, policy in zip(
            np.sort(losses)[:, ::-1], best_policy(losses, calls), strict=True
        ):
            every = [
                policy_cost(of_stage, np.array([0, *rest]))
                for rest in itertools.combinations(range(1, 9), calls - 1)
            ]
            assert policy_cost(of_stage, policy) == pytest.approx(min(every), rel=1e-12)
    np.testing.assert_array_equal(best_policy(losses, 9), np.tile(np.arange(9), (3, 1)))


def test_long_policies_are_those_of_the_plain_recursion():
    """300 steps: searched whole in three columns, and between them."""
    rng = np.random.default_rng(1)
    losses = np.stack([rng.exponential(size=300), 1 / np.arange(1, 301), np.ones(300)])
    for calls in (5, 40):
        for of_stage, policy in zip(losses, best_policy(losses, calls), strict=True):
            assert policy.tolist() == plain(np.sort(of_stage)[::-1], calls)


def test_even_policies_round_half_to_even():
    assert even_policy(10, 4).tolist() == [0, 2, 5, 8]
    assert even_policy(64, 64).tolist() == [*range(64)]


@pytest.mark.parametrize("calls", [0, 65])
def test_calls_that_are_none_or_more_than_the_steps_are_refused(calls):
    with pytest.raises(ValueError, match="choose 1 to 64"):
        even_policy(64, calls)
    with pytest.raises(ValueError, match="choose 1 to 64"):
        best_policy(np.ones((1, 64)), calls)
