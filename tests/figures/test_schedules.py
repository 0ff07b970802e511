"""What is drawn of a schedule are its probabilities."""

import numpy as np
import pytest
from scipy import stats

from darl_jax.figures.schedules import BETAS, schedules_figure, shares
from darl_jax.methods.darl.schedules import FUNCTIONS, Beta

EDGES = np.linspace(0.0, 1.0, 51)


@pytest.mark.parametrize(("a", "b"), [(0.03, 1.0), (1.0, 10.0), (2.0, 5.0)])
def test_shares_of_a_beta_are_its_probabilities(a, b):
    # As many points of u as shares are read from; an edge between two of them is off by one.
    np.testing.assert_allclose(
        shares(Beta(a, b)), np.diff(stats.beta(a, b).cdf(EDGES)), atol=2 / 200_001
    )


def test_shares_of_a_function_are_its_probabilities():
    # gamma = cos^2(pi s / 2) is the arcsine distribution.
    expected = np.diff(stats.arcsine.cdf(EDGES))
    np.testing.assert_allclose(shares(FUNCTIONS["cosine"]), expected, atol=2 / 200_001)


def test_every_schedule_is_drawn_with_its_shares():
    left, right = schedules_figure().axes
    assert len(left.patches) == len(BETAS)
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["Beta(0.03, 1)", "DDPM", "cosine", "sigmoid", "linear (l-DAE)"]
    drawn = right.patches[names.index("cosine")].get_data()
    np.testing.assert_array_equal(drawn.values, shares(FUNCTIONS["cosine"]))
    np.testing.assert_allclose(drawn.edges, EDGES)
