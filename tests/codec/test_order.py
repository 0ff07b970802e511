"""Orders of generation, which compressed files rely on for ever."""

import numpy as np

from darl_jax.codec import order


def test_the_order_is_that_of_version_1():
    assert order.ranks(3, 1, 12).tolist() == [8, 2, 5, 4, 7, 3, 6, 10, 1, 11, 9, 0]
    first = order.ranks(0, 0, 3072)
    assert sorted(first) == list(range(3072))
    for other in (order.ranks(0, 1, 3072), order.ranks(1, 0, 3072)):
        assert (first != other).mean() > 0.99


def test_positions_that_are_not_coded_come_last_and_the_others_keep_their_order():
    ranks = order.ranks(0, 0, 6)
    coded = np.array([[True] * 6, [True, False, True, True, False, True]])
    rows = order.ranks_of_coded(ranks, coded)
    np.testing.assert_array_equal(rows[0], ranks)
    assert rows[1, [1, 4]].tolist() == [4, 5]
    kept = [0, 2, 3, 5]
    np.testing.assert_array_equal(np.argsort(rows[1, kept]), np.argsort(ranks[kept]))


def test_the_policys_hash_depends_on_each_start():
    assert order.policy_hash([[0, 3], [0, 4]]).hex() == "c7712152"
    assert order.policy_hash([[0, 3], [0, 5]]) != order.policy_hash([[0, 3], [0, 4]])
