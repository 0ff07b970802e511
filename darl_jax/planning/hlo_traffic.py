"""Bytes of main memory that one HLO instruction reads and writes."""

import re

from darl_jax.planning.hlo_collectives import continues
from darl_jax.planning.hlo_text import ArrayShape, Computation, Instruction, Module

# They move nothing; what is inside of calls and loops is asked one by one.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call opt-barrier "
    "after-all add-dependency partition-id replica-id async-start async-update async-done".split()
)
_FREE_CUSTOM_CALLS = ("AllocateBuffer", "ConcatBitcast")
_SLICES = ("slice", "dynamic-slice", "gather")


def instruction_traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes read and written by an instruction that stands outside of a fusion."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    if instruction.attribute("custom_call_target") in _FREE_CUSTOM_CALLS:
        return 0
    if opcode == "fusion":
        return _fusion(module, instruction)
    if opcode == "slice-start":  # ((operand), result, context)
        result = instruction.shapes[1]
        return _least(computation.operand(instruction, 0).shapes[0], result) + result.hbm_bytes
    if opcode in ("copy-start", "all-gather-start", "collective-permute-start", "send"):
        # The result begins with the operands, or with as many results and the operands.
        count = len(operands)
        return _bytes(instruction.shapes[: 2 * count])
    if opcode in _SLICES:
        source = computation.operand(instruction, 0).shapes[0]
        rest = [s for name in operands[1:] for s in computation.instructions[name].shapes]
        return _least(source, instruction.shapes[0]) + _bytes(rest) + _bytes(instruction.shapes)
    if opcode == "dynamic-update-slice":
        target, new = (computation.operand(instruction, i).shapes[0] for i in (0, 1))
        return _least(target, new) + new.hbm_bytes
    return _bytes(computation.operand_shapes(instruction)) + _bytes(instruction.shapes)


def _fusion(module: Module, fusion: Instruction) -> int:
    fused = module.computations[fusion.attribute("calls")]
    read = sum(
        _read(module, fused, fused.parameter(index)) for index in range(len(fusion.operands))
    )
    aliases = re.findall(r"\{(\d*)\}: \(\d+", fusion.attribute("output_to_operand_aliasing"))
    root = fused.root
    if root.opcode == "tuple":
        outputs = [_written(module, fused, fused.instructions[name]) for name in root.operands]
    elif len(root.shapes) > 1:
        outputs = [shape.hbm_bytes for shape in root.shapes]
    else:
        outputs = [_written(module, fused, root)]
    if "" in aliases:
        return read
    written = sum(size for index, size in enumerate(outputs) if str(index) not in aliases)
    return read + written


def _read(module: Module, fused: Computation, value: Instruction) -> int:
    """Bytes that a fusion reads of one of its operands."""
    whole = _bytes(value.shapes)
    if whole == 0:
        return 0
    read = 0
    for user, index in fused.users(value.name):
        if user.opcode in _SLICES and index == 0:
            read += _least(value.shapes[0], user.shapes[0])
        elif user.opcode == "bitcast":
            read += _read(module, fused, user)
        elif user.opcode == "fusion":
            inner = module.computations[user.attribute("calls")]
            read += _read(module, inner, inner.parameter(index))
        elif not _hands_on(fused, user, index):
            return whole
    return min(read, whole)


def _hands_on(fused: Computation, user: Instruction, index: int) -> bool:
    """Whether an operand is only handed on, written to in place, or was counted before."""
    return (
        (user.opcode == "tuple" and user is fused.root)
        or "AsyncCollectiveDone" in user.attributes
        or (user.opcode == "dynamic-update-slice" and index == 0)
        or continues(fused, user)
    )


def _written(module: Module, fused: Computation, output: Instruction) -> int:
    """Bytes that a fusion writes of one of its results."""
    while output.opcode == "bitcast":
        output = fused.operand(output, 0)
    if output.opcode == "parameter" or continues(fused, output):
        return 0  # handed on; of a collective that runs on, the first fusion has the bytes
    if output.opcode == "dynamic-update-slice":
        return _least(output.shapes[0], fused.operand(output, 1).shapes[0])
    if output.opcode == "fusion":
        inner = module.computations[output.attribute("calls")]
        if inner.root.opcode != "tuple":
            return _written(module, inner, inner.root)
    return _bytes(output.shapes)


def _least(of: ArrayShape, part: ArrayShape) -> int:
    """Bytes of a part of an array; none where the array is in another memory."""
    return min(of.hbm_bytes, max(part.hbm_bytes, part.bytes))


def _bytes(shapes: list[ArrayShape] | tuple[ArrayShape, ...]) -> int:
    return sum(shape.hbm_bytes for shape in shapes)
