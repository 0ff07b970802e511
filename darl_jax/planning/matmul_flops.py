"""FLOPs of matrix multiplications and convolutions of a JAX function, counted in its jaxpr.

XLA's cost_analysis counts the body of a loop once; here a scan's body counts for each trip.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts FLOPs (2 for a multiply-add) of the products that function(*args) needs.

    Those are all dot_generals and convolutions; a convolution counts at the edges as elsewhere, and
    between the zeros that dilate its input not at all.

    The function is traced, not run. Equations with unused results are dropped first, as by the
    compiler. Recomputation by jax.checkpoint counts like any other work.

    Raises:
      ValueError: a while loop around a multiplication, which is not counted.
    """
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return sum(map(_count, jaxpr.eqns))


def _count(equation: core.JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left: Any = equation.invars[0].aval
        out: Any = equation.outvars[0].aval
        return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel: Any = equation.invars[1].aval
        output: Any = equation.outvars[0].aval
        numbers = equation.params["dimension_numbers"]
        # (output channels, input channels of a group, places); a group sees its own channels.
        _, inputs, *places = (kernel.shape[axis] for axis in numbers.rhs_spec)
        dilated = math.prod(equation.params["lhs_dilation"])
        return 2 * math.prod(output.shape) * inputs * math.prod(places) // dilated
    inner = [sum(map(_count, jaxpr.eqns)) for jaxpr in _inner_jaxprs(equation)]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("a while loop around a matrix multiplication: its length is not known")
    return sum(inner)


def _inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield item if isinstance(item, core.Jaxpr) else item.jaxpr
