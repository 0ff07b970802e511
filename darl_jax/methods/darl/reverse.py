"""Reverse process of one patch, from noise to pixels in T steps (Equation 3, Appendix F).

Levels are s = 1 .. T with gamma_s = 1 - s/T, whatever the training schedule: level 0 is the clean
patch, level T is pure noise. In float32 `1 - gamma` loses four digits near the clean patch, so
everything here is float64 and computed from s itself:

    1 - gamma_s = s / T        1 - alpha_s = 1 / (T - s + 1)        alpha_s = gamma_s / gamma_(s-1)

At s = T gamma and alpha are 0, and nothing here divides by them.
"""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Posterior:
    """q(x^(s-1) | x^s, x^0), a Gaussian, at levels s = 1 .. T; entry 0 is s = 1.

    Its mean is `of_x0` x^0 + `of_x` x^s. At s = 1 that is x^0 itself and the variance is 0.
    """

    noise: Float[np.ndarray, " level"]  # 1 - gamma_s, the variance of the noise in x^s
    signal: Float[np.ndarray, " level"]  # gamma_s
    of_x0: Float[np.ndarray, " level"]
    of_x: Float[np.ndarray, " level"]
    variance: Float[np.ndarray, " level"]  # of each dimension


def posterior(steps: int) -> Posterior:
    """Posterior at the levels 1 .. `steps`. Raises ValueError for less than one step."""
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    s = np.arange(1, steps + 1)
    noise, signal = s / steps, (steps - s) / steps
    noise_before, signal_before = (s - 1) / steps, (steps - s + 1) / steps
    one_minus_alpha = 1.0 / (steps - s + 1)
    alpha = (steps - s) / (steps - s + 1)
    return Posterior(
        noise=noise,
        signal=signal,
        of_x0=np.sqrt(signal_before) * one_minus_alpha / noise,
        of_x=np.sqrt(alpha) * noise_before / noise,
        variance=noise_before / noise * one_minus_alpha,
    )
