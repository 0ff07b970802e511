"""Steps that one network call generates together: dynamic programming, or even spacing.

Section 3.1 and appendix A.2 of arXiv 2110.02037. A policy of n calls is n first steps 0 = p_0 < ..
< p_(n-1): call i generates the positions whose step is in [p_i, p_(i+1)), all from what was known
at p_i, and p_n = D. As all unknown positions are exchangeable (eq 3), it costs
sum_i (p_(i+1) - p_i) L_(p_i), where L_t is the loss of one step.

NumPy in float64, with additions, multiplications and comparisons alone: the same on every machine.
"""

import itertools

import numpy as np
from jaxtyping import Float, Float64, Int64

_COARSE = 128  # steps between two columns of a row that are searched whole


def best_policy(
    losses: Float[np.ndarray, "stage step"], calls: int
) -> Int64[np.ndarray, "stage calls"]:
    """The cheapest policy of each stage with so many calls in each.

    Losses are sorted in descending order first: their noise would be exploited, and the expected
    ones fall (appendix A.2).

    Raises:
      ValueError: not between 1 and D calls.
    """
    check_calls(calls, losses.shape[1])
    return np.stack(
        [_cheapest(np.sort(of_stage.astype(np.float64))[::-1], calls) for of_stage in losses]
    )


def even_policy(steps: int, calls: int) -> Int64[np.ndarray, " calls"]:
    """Calls at even distances: round(linspace(0, D, n + 1)) without its end, half to even.

    Raises:
      ValueError: not between 1 and D calls.
    """
    check_calls(calls, steps)
    return np.round(np.linspace(0, steps, calls + 1)).astype(np.int64)[:-1]


def make_policy(
    kind: str, losses: Float[np.ndarray, "stage step"], calls: int
) -> Int64[np.ndarray, "stage calls"]:
    """The 'best' policy of each stage, or the 'even' one.

    Raises:
      ValueError: another kind, or not between 1 and D calls.
    """
    if kind not in ("best", "even"):
        raise ValueError(f"the policy {kind!r} is unknown; choose 'best' or 'even'")
    stages, steps = losses.shape
    if kind == "best":
        return best_policy(losses, calls)
    return np.tile(even_policy(steps, calls), (stages, 1))


def policy_cost(losses: Float[np.ndarray, " step"], policy: Int64[np.ndarray, " calls"]) -> float:
    """Cost of a policy of one stage, in the unit of the losses."""
    lengths = np.diff(policy, append=len(losses))
    return float(np.sum(lengths * losses[policy].astype(np.float64)))


def check_calls(calls: int, steps: int) -> None:
    """Checks a number of calls for each stage. Raises ValueError."""
    if not 1 <= calls <= steps:
        raise ValueError(f"{calls} calls cannot make {steps} steps; choose 1 to {steps}")


def _cheapest(losses: Float64[np.ndarray, " step"], calls: int) -> Int64[np.ndarray, " calls"]:
    """cost[k, t] = min over s of cost[k - 1, s] + (t - s) L_s, the first s where several are best.

    Row k has the cheapest ways to step t by k calls, the last one at s.
    """
    steps = len(losses)
    cost = np.full(steps + 1, np.inf)
    cost[0] = 0.0
    began = np.zeros((calls, steps + 1), np.int64)
    for call in range(calls):
        cost, began[call] = _next_row(cost, losses)
    policy, step = np.zeros(calls, np.int64), steps
    for call in range(calls - 1, -1, -1):
        step = policy[call] = began[call, step]
    return policy


def _next_row(
    cost: Float64[np.ndarray, " column"], losses: Float64[np.ndarray, " step"]
) -> tuple[Float64[np.ndarray, " column"], Int64[np.ndarray, " column"]]:
    """Costs with one call more, and where it begins.

    With falling losses the best beginnings rise with t. So a few columns are searched whole, and
    those between two of them only between their beginnings.
    """
    steps = len(losses)
    new, began = np.full(steps + 1, np.inf), np.zeros(steps + 1, np.int64)

    def search(columns: Int64[np.ndarray, " column"], first: int, last: int) -> None:
        begins = np.arange(first, last + 1)
        paths = cost[begins] + (columns[:, None] - begins) * losses[begins]
        paths[begins >= columns[:, None]] = np.inf
        best = np.argmin(paths, axis=1)
        new[columns], began[columns] = paths[np.arange(len(columns)), best], begins[best]

    coarse = np.unique(np.append(np.arange(1, steps + 1, _COARSE), steps))
    search(coarse, 0, steps - 1)
    for left, right in itertools.pairwise(coarse):
        if right - left > 1:
            search(np.arange(left + 1, right), int(began[left]), int(began[right]))
    return new, began
