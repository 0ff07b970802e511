"""The posterior's coefficients against its definition, in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from darl_jax.methods.darl.reverse import posterior


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_coefficients_are_those_of_the_definition_in_fractions(steps):
    """DDPM's Equations 6 and 7, with gamma_s = 1 - s/T and alpha_s = gamma_s / gamma_(s-1)."""
    table = posterior(steps)
    for s in {1, min(2, steps), steps // 2 or 1, steps - 1 or 1, steps}:
        gamma, before = Fraction(steps - s, steps), Fraction(steps - s + 1, steps)
        alpha = gamma / before
        of_x0_squared = before * ((1 - alpha) / (1 - gamma)) ** 2
        of_x_squared = alpha * ((1 - before) / (1 - gamma)) ** 2
        variance = (1 - before) / (1 - gamma) * (1 - alpha)
        got = table.of_x0[s - 1] ** 2, table.of_x[s - 1] ** 2, table.variance[s - 1]
        expected = float(of_x0_squared), float(of_x_squared), float(variance)
        np.testing.assert_allclose(got, expected, rtol=1e-14)
        assert table.signal[s - 1] == float(gamma)
        assert table.noise[s - 1] == float(1 - gamma)


def test_no_steps_are_an_error():
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        posterior(0)
