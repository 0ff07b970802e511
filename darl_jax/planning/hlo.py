"""What one run of a compiled program does on a device, read off its optimized HLO.

`compiled.cost_analysis()` counts the body of a loop once and says nothing of communication. Here
the instructions are walked as they are run: the body of a loop as often as it runs, the dearest
branch of a conditional, an asynchronous start and its done as one. Text of XLA for CPUs and for
TPUs is understood.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator

import numpy as np
from jax.sharding import Mesh

from darl_jax.planning.hlo_collectives import Collective, read_collective, slices_of
from darl_jax.planning.hlo_text import Computation, Instruction, Module, parse
from darl_jax.planning.hlo_traffic import instruction_traffic

# Custom calls that multiply matrices out of sight.
_HIDDEN_MATMUL = re.compile(r"gemm|matmul|conv|fmha|attention|tpu_custom_call", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Step:
    """An instruction, where it stands and how often it is run."""

    computation: Computation
    instruction: Instruction
    times: int


def collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """All communication of a step, equal ones merged, the most bytes first.

    Args:
      hlo_text: `compiled.as_text()` of a function compiled for the devices of `mesh`.
      mesh: position i of its flat devices is the HLO's device i.

    Raises:
      ValueError: the text has a kind of communication or of loop that is not understood.
    """
    module = parse(hlo_text)
    slices = slices_of(module, mesh)

    def read(step: _Step) -> Collective | None:
        return read_collective(step.computation, step.instruction, mesh, slices)

    def cost(step: _Step) -> int:
        found = read(step)
        return found.bytes if found else 0

    total: Counter[Collective] = Counter()
    for step in _executed(module, cost, into_fusions=True):
        found = read(step)
        if found:
            total[found] += step.times
    merged = [dataclasses.replace(found, count=times) for found, times in total.items()]
    return sorted(merged, key=lambda c: (-c.bytes * c.count, c.kind, c.axes))


def memory_traffic(hlo_text: str) -> int:
    """Bytes that a device reads from and writes to its main memory in a step.

    Every instruction outside of fusions reads its operands and writes its result, with the padding
    of their tiles; a slice reads what it takes, an update in place writes what is new, and what
    lives in a TPU's other memories costs nothing. Caches are not thought of.

    Raises:
      ValueError: it is not known how often a loop runs.
    """
    module = parse(hlo_text)

    def cost(step: _Step) -> int:
        return instruction_traffic(module, step.computation, step.instruction)

    return sum(cost(step) * step.times for step in _executed(module, cost, into_fusions=False))


def matmul_flops(hlo_text: str, *, counted_elsewhere: Collection[str] = ()) -> int:
    """FLOPs (2 for a multiply-add) of a device's dots and convolutions in a step.

    Args:
      hlo_text: the compiled step.
      counted_elsewhere: targets of custom calls whose FLOPs the caller knows.

    Raises:
      ValueError: it is not known how often a loop runs, or a custom call multiplies out of sight.
    """

    def cost(step: _Step) -> int:
        instruction = step.instruction
        if (
            instruction.opcode == "custom-call"
            and instruction.attribute("custom_call_target") in counted_elsewhere
        ):
            return 0
        return _flops(step.computation, instruction)

    steps = _executed(parse(hlo_text), cost, into_fusions=True)
    return sum(cost(step) * step.times for step in steps)


def _executed(
    module: Module, cost: Callable[[_Step], int], *, into_fusions: bool
) -> Iterator[_Step]:
    """Everything that is run, of loops and calls what is inside; `cost` chooses among branches."""

    def inside(name: str) -> Iterator[_Step]:
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                body = list(inside(instruction.attribute("body")))
                # Nobody needs to know how often a loop runs in which nothing is counted.
                if any(cost(step) for step in body):
                    trips = _trip_count(module, computation, instruction)
                    yield from (dataclasses.replace(s, times=s.times * trips) for s in body)
            elif instruction.opcode == "conditional":
                branches = [list(inside(branch)) for branch in _branches(instruction)]
                yield from max(branches, key=lambda steps: sum(cost(s) * s.times for s in steps))
            elif instruction.opcode == "call":
                yield from inside(instruction.attribute("to_apply"))
            elif instruction.opcode == "async-start":
                yield from inside(instruction.attribute("calls"))
            else:
                yield _Step(computation, instruction, 1)
                if instruction.opcode == "fusion" and into_fusions:
                    yield from inside(instruction.attribute("calls"))

    return inside(module.entry)


def _branches(instruction: Instruction) -> list[str]:
    several = instruction.attribute("branch_computations")
    if several:
        return [name.strip() for name in several.split(",")]
    return [instruction.attribute(f"{which}_computation") for which in ("true", "false")]


def _trip_count(module: Module, computation: Computation, loop: Instruction) -> int:
    """How often a loop runs: as the compiler says, or from its counter's start, step and limit."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known.group(1))
    condition = module.computations[loop.attribute("condition")]
    body = module.computations[loop.attribute("body")]
    compare, counter, limit = _comparison(module, condition)
    if counter is not None and limit is not None:
        start = _constant(computation, computation.operand(loop, 0), counter)
        step = _increment(body, counter)
        if start is not None and step:
            return max(0, -(-(limit - start) // step))
    raise ValueError(
        f"it is not known how often the loop {loop.name} runs: {compare.name} does not compare a "
        "counter of known start and step with a constant"
    )


def _comparison(
    module: Module, condition: Computation
) -> tuple[Instruction, int | None, int | None]:
    """`counter < limit` as (the comparison, the counter's place in the loop's state, limit)."""
    root, arguments = condition.root, list(condition.root.operands)
    compare = root
    if root.opcode == "fusion":
        fused = module.computations[root.attribute("calls")]
        compare = fused.root
        arguments = [
            root.operands[int(parameter.argument)]
            for parameter in (fused.instructions[name] for name in compare.operands)
            if parameter.opcode == "parameter"
        ]
    if compare.opcode != "compare" or len(arguments) != 2:
        return compare, None, None
    left, right = (condition.instructions[name] for name in arguments)
    limit = _constant(condition, right)
    if left.opcode != "get-tuple-element" or limit is None:
        return compare, None, None
    direction = compare.attribute("direction")
    if direction not in ("LT", "LE"):
        return compare, None, None
    return compare, int(left.attribute("index")), limit + (direction == "LE")


def _constant(
    computation: Computation, instruction: Instruction, element: int | None = None
) -> int | None:
    """The integer that an instruction, or an element of the tuple it makes, always is."""
    if element is not None:
        if instruction.opcode != "tuple":
            return None
        instruction = computation.operand(instruction, element)
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = computation.operand(instruction, 0)
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.argument):
        return int(instruction.argument)
    return None


def _increment(body: Computation, counter: int) -> int | None:
    """What is added to the counter in each turn."""
    if body.root.opcode != "tuple":
        return None
    new = body.operand(body.root, counter)
    while new.opcode in ("copy", "bitcast"):
        new = body.operand(new, 0)
    if new.opcode != "add":
        return None
    steps = [_constant(body, body.instructions[name]) for name in new.operands]
    return next((step for step in steps if step is not None), None)


def _flops(computation: Computation, instruction: Instruction) -> int:
    """FLOPs of a dot or a convolution; 0 of anything else."""
    if instruction.opcode == "dot":
        left = computation.operand(instruction, 0).shapes[0]
        contracted = [left.dims[axis] for axis in instruction.integers("lhs_contracting_dims")]
        return 2 * instruction.shapes[0].size * math.prod(contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "custom-call":
        target = instruction.attribute("custom_call_target")
        if _HIDDEN_MATMUL.search(target):
            raise ValueError(
                f"{instruction.name}: the custom call {target} multiplies matrices, and its FLOPs "
                "cannot be seen"
            )
    return 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """2 for each multiply-add of an element; TPU's batched dots are dilated convolutions.

    Products with padding and with the holes of a dilation are not counted, as in XLA's
    HloCostAnalysis::HandleConvolution.
    """
    left, right = (computation.operand(instruction, i).shapes[0].dims for i in (0, 1))
    labels = re.split("_|->", instruction.attribute("dim_labels"))
    lhs = dict(zip(labels[0], left, strict=True))
    kernel = dict(zip(labels[1], right, strict=True))
    out = dict(zip(labels[2], instruction.shapes[0].dims, strict=True))
    window = dict(re.findall(r"(\w+)=([\w\-]+)", instruction.attribute("window")))
    products = 1
    for axis in (label for label in labels[0] if label.isdigit()):

        def of(name: str, default: str, axis: str = axis) -> str:
            values = window.get(name, "").split("x")
            return values[int(axis)] if values != [""] else default

        low = int(of("pad", "0_0").split("_")[0])
        stride, dilation = int(of("stride", "1")), int(of("rhs_dilate", "1"))
        holes = int(of("lhs_dilate", "1"))
        at = np.arange(out[axis])[:, None] * stride + np.arange(kernel[axis]) * dilation - low
        inside = (at >= 0) & (at % holes == 0) & (at // holes < lhs[axis])
        products *= int(inside.sum())
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    return 2 * kernel["i"] * kernel["o"] * (lhs["b"] // batch_groups) * products
