"""Integer probability tables from logits, the same on every machine.

Everything after the subtraction from the maximum is exact: float64 additions and multiplications
as IEEE 754 defines them, one by one and on the host, and then integers. No logarithm, exponential
or fused multiply-add has a say. Where two machines round differently is a logit that lies within
their difference of a rounding boundary: the encoder finds a dither that moves all logits of an item
away from the boundaries (`unsafe_dithers`).
"""

import decimal
import functools

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

PRECISION = 24  # bits of a frequency
TOTAL = 1 << PRECISION
GRID = 64  # steps of the grid of logits in an octave
SCALE = 92.33248261893206  # GRID * log2(e)
DITHERS = 256
GUARDS = (1e-10, 5e-11, 2.5e-11, 1.25e-11)  # nats, the widest that some dither satisfies is used

# Weights are below 2^31, their sums below 2^39, and a product with TOTAL fits 63 bits.
MOST_LEAVES = 511

_OCTAVES = 31  # below the largest weight; what lies lower has the weight 0
_LOWEST = _OCTAVES * GRID

Relevant = Float64[np.ndarray, "n child leaf"]


@functools.cache
def weight_table() -> Int64[np.ndarray, "64"]:
    """T[i] = round(2^30 * 2^(-i/64)), by decimal arithmetic, which every machine does alike."""
    with decimal.localcontext(decimal.Context(prec=50, rounding=decimal.ROUND_HALF_EVEN)):
        octave = decimal.Decimal(2).ln()
        values = [(octave * (30 - decimal.Decimal(i) / GRID)).exp() for i in range(GRID)]
        return np.array([int(value.to_integral_value()) for value in values], np.int64)


def check_logits(logits: Float64[np.ndarray, "*shape"]) -> None:
    """Raises ValueError where a logit is NaN or +inf, or all alternatives of a symbol are -inf."""
    largest = logits.max(axis=(-2, -1))
    if not np.isfinite(largest).all():  # NumPy's maximum passes NaN on
        raise ValueError(
            "the model's logits are not finite; it cannot code (is its training run whole?)"
        )


def unsafe_dithers(relevant: Relevant, guard: float) -> Bool[np.ndarray, "256"]:
    """Dithers under which some logit lies within `guard` nats of a rounding boundary.

    With z = (max - logit) * SCALE + u/256 those are the u for which |z - floor(z) - 1/2| is less
    than SCALE * guard. Logits below the last octave do not matter.
    """
    z = (relevant.max(axis=(1, 2), keepdims=True) - relevant) * SCALE
    z = z[z < _LOWEST + 1]
    boundary = np.mod((0.5 - z) * DITHERS, DITHERS)  # the real number u at which z meets one
    nearest = np.rint(boundary)
    near = np.abs(boundary - nearest) < DITHERS * SCALE * guard
    unsafe = np.zeros(DITHERS, bool)
    unsafe[nearest[near].astype(np.int64) % DITHERS] = True
    return unsafe


def frequencies(relevant: Relevant, dither: int) -> Float64[np.ndarray, "n child"]:
    """Frequencies of the alternatives, less one each: integers that sum to TOTAL - child.

    Args:
      relevant: logits of the values that each alternative stands for, -inf where there is none.
      dither: 0 to 255.

    Returns:
      Integers as float64, which a coder adds 1 to: every alternative keeps 2^-24, so that nothing
      needs an escape.
    """
    z = (relevant.max(axis=(1, 2), keepdims=True) - relevant) * SCALE
    z = z + dither / DITHERS
    steps = np.minimum(np.rint(z), float(_LOWEST)).astype(np.int64)
    weights = (weight_table()[steps % GRID] >> (steps // GRID)).sum(axis=2)
    spread = TOTAL - weights.shape[1]
    shares = weights * spread // weights.sum(axis=1, keepdims=True)
    largest = shares.argmax(axis=1)  # of integers: two logits may be as good as equal
    shares[np.arange(len(shares)), largest] += spread - shares.sum(axis=1)
    return shares.astype(np.float64)


def table_bits(
    shares: Float64[np.ndarray, "n child"], symbols: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """-log2 of the probabilities that tables give to symbols."""
    return PRECISION - np.log2(shares[np.arange(len(shares)), symbols] + 1)
