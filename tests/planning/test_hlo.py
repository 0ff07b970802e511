"""Compiled programs whose communication, FLOPs and bytes are known by hand.

`golden/hlo_v5e_*.txt` come from the TPU's compiler, by `golden/make_hlo.py`. Programs for eight
forced host devices are compiled in a process of their own: run as a program this file prints what
`hlo` says of them as JSON.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from darl_jax.config import from_file, load
from darl_jax.planning import hlo
from darl_jax.planning.hlo_collectives import Collective
from darl_jax.planning.hlo_text import parse, replica_groups
from darl_jax.training.optimizers import make_optimizer
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import abstract_state, graph_definition
from darl_jax.training.step import lower_step, make_train_step
from tests.jaxpr_flops import matmul_flops
from tests.planned import compiling_as_users_do

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
LAYERS, BATCH, WIDTH = 5, 64, 32
TRAIN_MESHES = [(4, 2, 1), (2, 2, 2)]


def scan_of_matmuls() -> dict[str, Any]:
    """The gradient of a stack of dense layers; weights split over fsdp, examples over both."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    examples = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.with_sharding_constraint(jnp.sin(x @ w), examples), None

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.scan(layer, x, w)[0] ** 2)

    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    w = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32, sharding=examples)
    text = jax.jit(jax.grad(loss), out_shardings=split).lower(w, x).compile().as_text()
    return measure(str(text), mesh)


def train_step(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """The train step of configs/digits.py:mse, as loops, on a mesh, and its FLOPs by its jaxpr."""
    raw = from_file(f"{pathlib.Path(__file__).parents[2]}/configs/digits.py:mse")
    raw.model.unroll = 1
    config = load(raw)
    mesh = make_mesh(MeshConfig(*sizes))
    model = config.method.init
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-3)
    state = abstract_state(model, optimizer, mesh)
    with jax.set_mesh(mesh):
        step = make_train_step(graph_definition(model), config.method, optimizer)
        batch, key = (
            abstract_batch(config.method.inputs, config.batch_size, mesh),
            jax.random.key(0),
        )
        text = str(lower_step(step, state, batch, key).compile().as_text())
        return measure(text, mesh) | {"jaxpr_flops": matmul_flops(step, state, batch, key)}


def measure(text: str, mesh: Mesh) -> dict[str, Any]:
    found = hlo.collectives(text, mesh)
    return {
        "collectives": [dataclasses.asdict(collective) for collective in found],
        "flops": hlo.matmul_flops(text),
    }


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What this file prints when it is run with eight devices."""
    environment = compiling_as_users_do() | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    command = [sys.executable, __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def read_collectives(result: dict[str, Any]) -> list[Collective]:
    return [Collective(**{**c, "axes": tuple(c["axes"])}) for c in result["collectives"]]


class Device:
    """Stands where a jax.Device does in a mesh."""

    platform, device_kind, process_index = "tpu", "TPU v5 lite", 0

    def __init__(self, number: int, slice_index: int = 0) -> None:
        self.id, self.slice_index = number, slice_index


def a_mesh(shape: tuple[int, ...] = (2, 4), slices: int = 1) -> Mesh:
    size = int(np.prod(shape))
    devices = [Device(i, i * slices // size) for i in range(size)]
    return Mesh(np.array(devices).reshape(shape), ("data", "fsdp", "tensor")[: len(shape)])


def a_module(*lines: str, devices: int = 8, computations: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    header = f"HloModule test, is_scheduled=true, num_partitions={devices}"
    return f"{header}\n\n{computations}\nENTRY %main () -> f32[] {{\n{body}\n}}\n"


# --- Programs that XLA compiled ---


def test_collectives_of_a_scan_on_the_cpu_are_those_known_by_hand(measured: dict) -> None:
    weights = 4 * WIDTH * WIDTH
    assert read_collectives(measured["scan"]) == [
        # Gathered in the forward pass and again in the backward pass; the CPU's compiler reduces
        # a gradient over fsdp whole, cuts out a device's part, and reduces that over data.
        Collective("all-gather", ("fsdp",), weights, 2 * LAYERS, 4),
        Collective("all-reduce", ("fsdp",), weights, LAYERS, 4),
        Collective("all-reduce", ("data",), weights // 4, LAYERS, 2),
    ]


def test_flops_of_a_scan_are_those_of_all_its_turns(measured: dict) -> None:
    assert 8 * measured["scan"]["flops"] == LAYERS * 3 * 2 * BATCH * WIDTH * WIDTH


def test_flops_of_a_train_step_are_those_of_its_jaxpr(measured: dict) -> None:
    result = measured["4,2,1"]
    assert 8 * result["flops"] == result["jaxpr_flops"]


def test_what_the_tensor_axis_does_not_split_is_computed_twice(measured: dict) -> None:
    result = measured["2,2,2"]
    # configs/digits.py:mse: 64 images of 16 patches of 4 pixels; width 128. At most the embedding
    # (forward and gradient of the weights) and the output (and gradient of its input) are.
    twice = 64 * (2 * 15 + 3 * 16) * 2 * 4 * 128
    assert result["jaxpr_flops"] <= 8 * result["flops"] <= result["jaxpr_flops"] + twice


@pytest.mark.parametrize("sizes", ["4,2,1", "2,2,2"])
def test_every_collective_of_a_train_step_runs_over_axes_of_the_mesh(
    measured: dict, sizes: str
) -> None:
    found = read_collectives(measured[sizes])
    shape = dict(zip(("data", "fsdp", "tensor"), map(int, sizes.split(",")), strict=True))
    for collective in found:
        assert collective.axes, collective
        assert collective.group_size == np.prod([shape[axis] for axis in collective.axes])
    # The blocks' six kernels, 12 width^2 in all, are gathered in the forward and the backward pass.
    gathered = sum(c.bytes * c.count for c in found if c.kind == "all-gather" and "fsdp" in c.axes)
    kernels = 4 * 12 * 128 * 128 * 4 / shape["tensor"]
    assert 2 * kernels <= gathered < 2.1 * kernels


def test_tpu_scan_has_its_gathers_once_and_its_fused_reduce_scatters() -> None:
    text = (GOLDEN / "hlo_v5e_scan.txt").read_text()
    layers, batch, width = 3, 8192, 1024
    weights = 2 * width * width
    # One of the gathers stands in a chain of three fusions; only conditions tell loops' lengths.
    assert text.count(" all-gather(") == 4
    assert "AsyncCollectiveStart" in text
    assert "known_trip_count" not in text
    assert "reduce-scatter(" not in text
    assert hlo.collectives(text, a_mesh()) == [
        Collective("all-gather", ("fsdp",), weights, 2 * layers, 4),
        Collective("reduce-scatter", ("fsdp",), weights, layers, 4),
        Collective("all-reduce", ("data",), weights // 4, layers, 2),
    ]
    assert 8 * hlo.matmul_flops(text) == layers * 3 * 2 * batch * width**2


def test_tpu_scan_moves_its_arguments_and_its_result_and_the_rest_stays_on_the_chip() -> None:
    text = (GOLDEN / "hlo_v5e_scan.txt").read_text()
    examples, weights = 2 * 8192 // 8 * 1024, 2 * 3 * 1024 * 1024 // 4
    least = examples + 2 * weights
    assert least <= hlo.memory_traffic(text) < least + 1000  # scalars, and little of them


def test_tpu_program_has_one_of_each_kind_and_the_dearer_branch() -> None:
    text = (GOLDEN / "hlo_v5e_collectives.txt").read_text()
    x, y = 2 * 8192 // 8 * 1024, 2 * 256 // 8 * 1024  # a device's parts
    assert set(hlo.collectives(text, a_mesh())) == {
        Collective("collective-permute", ("fsdp",), x, 1, 4),
        Collective("all-to-all", ("fsdp",), 4 * x, 1, 4),
        Collective("all-gather", ("data", "fsdp"), 8 * y, 1, 8),
        Collective("reduce-scatter", ("data",), x, 1, 2),
        Collective("all-reduce", ("data",), y, 1, 2),
    }
    assert 8 * hlo.matmul_flops(text) == 2 * 8192 * 1024 * 1024


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_strides": (2, 1), "padding": ((1, 2), (0, 0))},
        {"lhs_dilation": (3, 2), "padding": ((2, 2), (1, 1))},
        {"rhs_dilation": (2, 1), "padding": ((0, 0), (3, -1))},
        {"feature_group_count": 2},
    ],
)
def test_flops_of_a_convolution_are_those_of_xlas_cost_analysis(options: dict) -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, **{"window_strides": (1, 1), "padding": "VALID"} | options
        )

    groups = options.get("feature_group_count", 1)
    args = jnp.ones((2, 4, 9, 8)), jnp.ones((6, 4 // groups, 3, 2))
    compiled = jax.jit(convolve).lower(*args).compile()
    cost = compiled.cost_analysis()
    text = compiled.as_text()
    assert cost is not None and text is not None
    assert " convolution(" in text
    assert hlo.matmul_flops(text) == pytest.approx(cost["flops"], rel=1e-6)


def test_traffic_without_loops_is_xlas_bytes_accessed() -> None:
    def function(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.tanh(x + 1) @ w
        return y * 2, jnp.sort(y, axis=0)

    compiled = jax.jit(function).lower(jnp.ones((64, 128)), jnp.ones((128, 256))).compile()
    cost, text = compiled.cost_analysis(), compiled.as_text()
    assert cost is not None and text is not None
    assert hlo.memory_traffic(text) == pytest.approx(cost["bytes accessed"], rel=1e-3)


# --- Single properties, in small pieces of text ---

NOTATIONS = {
    "{{0,4},{1,5},{2,6},{3,7}}": ("data",),
    "[4,2]<=[2,4]T(1,0)": ("data",),
    "mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_1'}": ("data",),
    "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}": ("data",),
    "mesh['a'=8] {'a':(1)2}": ("data",),
    "{{0,1,2,3},{4,5,6,7}}": ("fsdp",),
    "{{3,1,0,2},{7,4,5,6}}": ("fsdp",),
    "[2,4]<=[8]": ("fsdp",),
    "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}": ("fsdp",),
    "mesh['a'=8] {'a':(2)4}": ("fsdp",),
    "{}": ("data", "fsdp"),
    "[1,8]<=[8]": ("data", "fsdp"),
    "mesh['a'=2,'b'=4] {'a','b'}": ("data", "fsdp"),
    "{{0,1},{2,3},{4,5},{6,7}}": (),
    "mesh['a'=4,'b'=2] {'b'}": (),
}


@pytest.mark.parametrize("notation", NOTATIONS)
def test_axes_are_found_in_every_notation_of_groups(notation: str) -> None:
    text = a_module(
        "%x = f32[16]{0} parameter(0)",
        f"ROOT %r = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups={notation}, "
        "use_global_device_ids=true, to_apply=%add",
    )
    (found,) = hlo.collectives(text, a_mesh())
    axes = NOTATIONS[notation]
    assert (found.axes, found.bytes, found.count) == (axes, 64, 1)
    assert found.name == ("+".join(axes) or "mixed")
    assert found.group_size == (np.prod([{"data": 2, "fsdp": 4}[a] for a in axes]) if axes else 2)


def test_axes_are_those_of_a_mesh_of_three_even_where_one_has_length_1() -> None:
    def axes(notation: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        text = a_module(
            "%x = f32[16]{0} parameter(0)",
            f"ROOT %r = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups={notation}, "
            "use_global_device_ids=true, to_apply=%add",
        )
        return hlo.collectives(text, a_mesh(shape))[0].axes

    assert axes("{{0,2},{1,3},{4,6},{5,7}}", (2, 2, 2)) == ("fsdp",)
    assert axes("{{0,1,4,5},{2,3,6,7}}", (2, 2, 2)) == ("data", "tensor")
    assert axes("[1,8]<=[8]", (1, 8, 1)) == ("fsdp",)


def test_asynchronous_and_variadic_collectives_count_once_with_all_their_bytes() -> None:
    wrapped = (
        "%wrapped (p: f32[32]) -> f32[8] {\n"
        "  %p = f32[32]{0} parameter(0)\n"
        "  ROOT %rs = f32[8]{0} reduce-scatter(%p), channel_id=4, replica_groups=[2,4]<=[8], "
        "use_global_device_ids=true, dimensions={0}, to_apply=%add\n}\n"
    )
    groups = "replica_groups=[2,4]<=[8], use_global_device_ids=true"
    text = a_module(
        "%a = f32[8]{0} parameter(0)",
        "%b = bf16[32]{0} parameter(1)",
        "%c = f32[32]{0} parameter(2)",
        f"%g = (f32[8]{{0}}, f32[32]{{0}}) all-gather-start(%a), channel_id=1, {groups}, "
        "dimensions={0}",
        "%gd = f32[32]{0} all-gather-done(%g)",
        f"%r = (f32[8]{{0}}, bf16[32]{{0}}) all-reduce-start(%a, %b), channel_id=2, {groups}, "
        "to_apply=%add",
        "%rd = (f32[8]{0}, bf16[32]{0}) all-reduce-done(%r)",
        "%s = ((f32[32]{0}), f32[8]{0}) async-start(%c), calls=%wrapped",
        "ROOT %sd = f32[8]{0} async-done(%s), calls=%wrapped",
        computations=wrapped,
    )
    assert hlo.collectives(text, a_mesh()) == [
        Collective("all-gather", ("fsdp",), 4 * 32, 1, 4),
        Collective("reduce-scatter", ("fsdp",), 4 * 32, 1, 4),
        Collective("all-reduce", ("fsdp",), 4 * 8 + 2 * 32, 1, 4),
    ]
    # What is gathered: read 8 and write 32; reduced: read and write both.
    assert hlo.memory_traffic(text) == (32 + 128) + 2 * (32 + 64) + (128 + 32)


def test_a_program_for_slices_tells_the_network_between_them_from_their_own() -> None:
    text = a_module(
        "%x = bf16[64]{0} parameter(0)",
        "%t = token[] after-all()",
        "%g = bf16[256]{0} all-gather(%x), channel_id=9, replica_groups={{0,1,2,3}}, "
        "use_global_device_ids=true, dimensions={0}",
        "%s = (bf16[64]{0}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}',
        "%r = (bf16[64]{0}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
        "%sd = token[] send-done(%s), channel_id=2",
        "ROOT %rd = (bf16[64]{0}, token[]) recv-done(%r), channel_id=1",
        devices=4,
    )
    assert hlo.collectives(text, a_mesh(slices=2)) == [
        Collective("all-gather", ("fsdp",), 512, 1, 4),
        Collective("all-reduce", ("data",), 128, 1, 2, between_slices=True),
    ]
    with pytest.raises(ValueError, match="for 4 devices and the mesh has 8"):
        hlo.collectives(text, a_mesh())


def test_permutes_run_over_the_axes_that_somebody_crosses() -> None:
    def axes(pairs: str) -> Collective:
        text = a_module(
            "%x = f32[16]{0} parameter(0)",
            f"ROOT %r = f32[16]{{0}} collective-permute(%x), channel_id=1, "
            f"source_target_pairs={pairs}",
        )
        return hlo.collectives(text, a_mesh())[0]

    ring = "{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    assert axes(ring) == Collective("collective-permute", ("fsdp",), 64, 1, 4)
    assert axes("{{0,4},{4,0},{1,1}}").axes == ("data",)
    assert axes("{{0,5}}").axes == ("data", "fsdp")


def loops(start: int, step: int, direction: str, limit: int, hint: str = "") -> str:
    """A loop inside of a loop of 3 turns, around a dot of 2 x 4 x 8 x 16 FLOPs."""
    dot = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    computations = f"""%body (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %s = (s32[], f32[4,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,8]{{1,0}} get-tuple-element(%s), index=1
  %w = f32[8,16]{{1,0}} constant({{...}})
  %d = f32[4,16]{{1,0}} dot(%x, %w), {dot}, metadata={{op_name="jit(f)/a,b" stack_frame_id=1}}
  %by = s32[] constant({step})
  %next = s32[] add(%i, %by)
  ROOT %t = (s32[], /*index=1*/f32[4,8]{{1,0}}) tuple(%next, %x)
}}

%condition (s: (s32[], f32[4,8])) -> pred[] {{
  %s = (s32[], f32[4,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant({limit})
  ROOT %lt = pred[] compare(%i, %limit), direction={direction}
}}

%outer (o: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %o = (s32[], f32[4,8]{{1,0}}) parameter(0)
  %x = f32[4,8]{{1,0}} get-tuple-element(%o), index=1
  %zero = s32[] constant({start})
  %start = s32[]{{:T(128)}} copy(%zero)
  %init = (s32[], f32[4,8]{{1,0}}) tuple(%start, %x)
  ROOT %inner = (s32[], f32[4,8]{{1,0}}) while(%init), condition=%condition, body=%body{hint}
}}

"""
    return a_module(
        "%x = f32[4,8]{1,0} parameter(0)",
        "%n = s32[] parameter(1)",
        "%init = (s32[], f32[4,8]{1,0}) tuple(%n, %x)",
        "ROOT %loop = (s32[], f32[4,8]{1,0}) while(%init), condition=%unread, body=%outer, "
        'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}',
        devices=1,
        computations=computations,
    )


@pytest.mark.parametrize(
    ("start", "step", "direction", "limit", "turns"),
    [(0, 1, "LT", 12, 12), (1, 1, "LT", 12, 11), (0, 1, "LE", 12, 13), (0, 5, "LT", 12, 3)],
)
def test_a_loop_runs_as_often_as_its_counter_says(
    start: int, step: int, direction: str, limit: int, turns: int
) -> None:
    assert hlo.matmul_flops(loops(start, step, direction, limit)) == 3 * turns * 2 * 4 * 8 * 16


def test_the_compilers_word_goes_before_the_counter() -> None:
    hint = ', backend_config={"known_trip_count":{"n":"7"}}'
    assert hlo.matmul_flops(loops(0, 1, "LT", 12, hint)) == 3 * 7 * 2 * 4 * 8 * 16


def test_a_loop_of_unknown_length_is_an_error_where_something_in_it_counts() -> None:
    text = loops(0, 1, "NE", 12)
    with pytest.raises(ValueError, match="how often the loop %inner runs"):
        hlo.matmul_flops(text)
    assert hlo.collectives(text, a_mesh((1, 1))) == []


def test_padding_of_tiles_counts_as_traffic_and_other_memories_do_not() -> None:
    text = a_module(
        # Stored as 12 x 196 x 16 x 196, the last two padded to 16 x 256.
        "%a = f32[16,12,196,196]{3,0,2,1:T(8,128)} parameter(0)",
        "%b = bf16[196]{0:T(1024)(128)(2,1)S(1)} parameter(1)",
        "%c = bf16[3,100]{1,0:T(8,128)(2,1)} copy(%b)",
        "ROOT %d = f32[16,12,196,196]{3,2,1,0:T(8,128)S(1)} copy(%a)",
        devices=1,
    )
    assert hlo.memory_traffic(text) == 2 * 8 * 128 + 4 * 12 * 196 * 16 * 256


def test_a_fusion_reads_what_it_slices_and_writes_what_it_updates() -> None:
    fused = """%fused (p: f32[12,64], q: f32[12,64], i: s32[]) -> f32[12,64] {
  %p = f32[12,64]{1,0} parameter(0)
  %q = f32[12,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,64}
  %n = f32[1,64]{1,0} negate(%s)
  ROOT %u = f32[12,64]{1,0} dynamic-update-slice(%q, %n, %i, %zero)
}

"""
    text = a_module(
        "%p = f32[12,64]{1,0} parameter(0)",
        "%q = f32[12,64]{1,0} parameter(1)",
        "%i = s32[] parameter(2)",
        "ROOT %f = f32[12,64]{1,0} fusion(%p, %q, %i), kind=kLoop, calls=%fused",
        devices=1,
        computations=fused,
    )
    assert hlo.memory_traffic(text) == 4 * 64 + 4 * 64 + 4


def test_a_collective_beside_a_chain_of_fusions_reads_and_writes_once() -> None:
    gather = (
        "all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], use_global_device_ids=true, "
        'dimensions={0}, frontend_attributes={chain_id="0"}'
    )
    pair = "(f32[16]{0}, f32[64]{0})"
    fused = f"""%start (p: f32[16]) -> (f32[16], f32[64]) {{
  %p = f32[16]{{0}} parameter(0)
  %g = f32[64]{{0}} {gather}
  ROOT %s = {pair} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%step (p: f32[16], q: f32[64], x: f32[8]) -> (f32[8], f32[16], f32[64], f32[64]) {{
  %p = f32[16]{{0}} parameter(0)
  %q = f32[64]{{0}} parameter(1)
  %x = f32[8]{{0}} parameter(2)
  %n = f32[8]{{0}} negate(%x)
  %g = f32[64]{{0}} {gather}
  ROOT %t = (f32[8]{{0}}, f32[16]{{0}}, f32[64]{{0}}, f32[64]{{0}}) tuple(%n, %p, %q, %g)
}}

%done (p: f32[16], q: f32[64]) -> f32[64] {{
  %p = f32[16]{{0}} parameter(0)
  %q = f32[64]{{0}} parameter(1)
  %g = f32[64]{{0}} {gather}
  ROOT %d = f32[64]{{0}} custom-call(%p, %q, %g), custom_call_target="AsyncCollectiveDone"
}}

"""
    text = a_module(
        "%a = f32[16]{0} parameter(0)",
        "%x = f32[8]{0} parameter(1)",
        f"%s = {pair} fusion(%a), kind=kCustom, output_to_operand_aliasing={{{{0}}: (0, {{}})}}, "
        "calls=%start",
        "%p = f32[16]{0} get-tuple-element(%s), index=0",
        "%q = f32[64]{0} get-tuple-element(%s), index=1",
        "%n = (f32[8]{0}, f32[16]{0}, f32[64]{0}, f32[64]{0}) fusion(%p, %q, %x), kind=kLoop, "
        "calls=%step",
        "%r = f32[64]{0} get-tuple-element(%n), index=3",
        "ROOT %d = f32[64]{0} fusion(%p, %r), kind=kCustom, "
        "output_to_operand_aliasing={{}: (1, {})}, calls=%done",
        computations=fused,
    )
    assert hlo.collectives(text, a_mesh()) == [Collective("all-gather", ("fsdp",), 256, 1, 4)]
    # Gathered from 16 values into 64 once; 8 others are negated meanwhile.
    assert hlo.memory_traffic(text) == 4 * (16 + 64) + 4 * (8 + 8)


def test_a_device_that_reduces_with_nobody_does_not_communicate() -> None:
    alone = ("channel_id=1, replica_groups=[8,1]<=[8], use_global_device_ids=true", "to_apply=%add")
    text = a_module(
        "%x = f32[16]{0} parameter(0)",
        f"%r = f32[16]{{0}} all-reduce(%x), {', '.join(alone)}",
        # Without a channel the groups are of replicas, and there is one.
        "ROOT %s = f32[16]{0} all-reduce(%x), replica_groups={{0}}, to_apply=%add",
    )
    assert hlo.collectives(text, a_mesh()) == []


def test_a_batched_product_of_the_tpu_counts_no_holes() -> None:
    # Attention logits of ViT-B/16 as its compiler writes them.
    text = a_module(
        "%q = bf16[16,196,12,64]{3,2,1,0} parameter(0)",
        "%k = bf16[16,196,12,64]{3,2,1,0} parameter(1)",
        "ROOT %c = f32[16,12,196,196]{3,2,1,0} convolution(%q, %k), "
        "window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=0b1f_0o1i->01bf",
        devices=1,
    )
    assert hlo.matmul_flops(text) == 2 * 16 * 12 * 196 * 196 * 64


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ragged-all-to-all(%x), channel_id=1", "%r: communication by ragged-all-to-all"),
        ("all-reduce(%x), channel_id=1, replica_groups=?, use_global_device_ids=true", "unknown"),
        (
            "all-reduce(%x), channel_id=1, replica_groups={{0,1}}, use_global_device_ids=true",
            "is not for 8 devices",
        ),
        ("send(%x), channel_id=1", "%r: a send that is no collective"),
    ],
)
def test_communication_that_is_not_understood_is_an_error(line: str, message: str) -> None:
    text = a_module("%x = f32[16]{0} parameter(0)", f"ROOT %r = f32[16]{{0}} {line}")
    with pytest.raises(ValueError, match=message):
        hlo.collectives(text, a_mesh())


def test_a_kernel_that_hides_its_products_is_an_error() -> None:
    text = a_module(
        "%x = f32[16]{0} parameter(0)",
        'ROOT %r = f32[16]{0} custom-call(%x), custom_call_target="__cublas$gemm"',
    )
    with pytest.raises(ValueError, match=r"%r: the custom call __cublas\$gemm multiplies"):
        hlo.matmul_flops(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("func.func @main() {\n}", "no ENTRY"),
        ("HloModule a, replica_count=4\nENTRY %m () -> f32[] {\n}", "4 replicas"),
        ("HloModule a\nENTRY %m () -> f32[] {\n  nonsense\n}", "'  nonsense'"),
    ],
)
def test_what_is_not_an_hlo_module_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hlo.matmul_flops(text)


def test_groups_of_partial_axes_are_numbered_as_xla_does() -> None:
    # Of an axis of 8 = 2 x 2 x 2 the middle one: 2 come before it, and it is 2 long.
    module = parse(
        a_module(
            "%x = f32[] parameter(0)",
            "ROOT %r = f32[] all-reduce(%x), replica_groups=mesh['a'=8,'b'=2] {'a':(2)2}",
            devices=16,
        )
    )
    groups = replica_groups(module.computations["%main"].root, 16)
    ids = np.arange(16).reshape(2, 2, 2, 2).transpose(0, 2, 3, 1).reshape(-1, 2)
    assert sorted(groups) == sorted(tuple(group) for group in ids.tolist())


if __name__ == "__main__":
    results = {"scan": scan_of_matmuls()}
    for train_mesh in TRAIN_MESHES:
        results[",".join(map(str, train_mesh))] = train_step(train_mesh)
    print(json.dumps(results))
