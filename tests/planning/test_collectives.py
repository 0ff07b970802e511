"""Collectives of compiled programs that are known by hand.

`golden/hlo_v5e_*.txt` come from the TPU's compiler, by `golden/make_hlo.py`.
"""

import math
import pathlib

import numpy as np
import pytest
from jax.sharding import Mesh

from darl_jax.planning.collectives import Collective, collectives

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


class Device:
    """Stands for a jax.Device in a mesh."""

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


def all_reduce(groups: str) -> str:
    return a_module(
        "%x = f32[16]{0} parameter(0)",
        f"ROOT %r = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, "
        "use_global_device_ids=true, to_apply=%add",
        computations="%add () -> f32[] {\n  ROOT %z = f32[] constant(0)\n}\n",
    )


def test_tpu_scan_has_its_gathers_once_and_its_fused_reduce_scatters() -> None:
    text = (GOLDEN / "hlo_v5e_scan.txt").read_text()
    layers, width = 3, 1024
    weights = 2 * width * width
    # One of the gathers stands in a chain of three fusions; only conditions have loops' lengths.
    assert text.count(" all-gather(") == 4
    assert "AsyncCollectiveStart" in text
    assert "known_trip_count" not in text
    assert "reduce-scatter(" not in text
    assert collectives(text, a_mesh()) == [
        Collective("all-gather", ("fsdp",), weights, 2 * layers, 4),
        Collective("reduce-scatter", ("fsdp",), weights, layers, 4),
        Collective("all-reduce", ("data",), weights // 4, layers, 2),
    ]


def test_tpu_program_has_one_collective_of_each_kind() -> None:
    text = (GOLDEN / "hlo_v5e_collectives.txt").read_text()
    x, y = 2 * 8192 // 8 * 1024, 2 * 256 // 8 * 1024  # a device's parts
    assert set(collectives(text, a_mesh())) == {
        Collective("collective-permute", ("fsdp",), x, 1, 4),
        Collective("all-to-all", ("fsdp",), 4 * x, 1, 4),
        Collective("all-gather", ("data", "fsdp"), 8 * y, 1, 8),
        Collective("reduce-scatter", ("data",), x, 1, 2),
        Collective("all-reduce", ("data",), y, 1, 2),
    }


NOTATIONS = {
    "{{0,4},{1,5},{2,6},{3,7}}": ("data",),
    "[4,2]<=[2,4]T(1,0)": ("data",),
    "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}": ("data",),
    "mesh['a'=8] {'a':(1)2}": ("data",),
    "{{3,1,0,2},{7,4,5,6}}": ("fsdp",),
    "[2,4]<=[8]": ("fsdp",),
    "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}": ("fsdp",),
    "mesh['a'=8] {'a':(2)4}": ("fsdp",),
    "{}": ("data", "fsdp"),
    "[1,8]<=[8]": ("data", "fsdp"),
    "mesh['a'=2,'b'=4] {'a','b'}": ("data", "fsdp"),
    "{{0,1},{2,3},{4,5},{6,7}}": (),
}


@pytest.mark.parametrize("notation", NOTATIONS)
def test_axes_are_found_in_every_notation_of_groups(notation: str) -> None:
    axes = NOTATIONS[notation]
    size = math.prod({"data": 2, "fsdp": 4}[axis] for axis in axes) if axes else 2
    assert collectives(all_reduce(notation), a_mesh()) == [
        Collective("all-reduce", axes, 64, 1, size)
    ]


def test_axes_are_those_of_a_mesh_of_three_even_where_one_has_length_1() -> None:
    def axes(notation: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        return collectives(all_reduce(notation), a_mesh(shape))[0].axes

    assert axes("{{0,2},{1,3},{4,6},{5,7}}", (2, 2, 2)) == ("fsdp",)
    assert axes("{{0,1,4,5},{2,3,6,7}}", (2, 2, 2)) == ("data", "tensor")
    assert axes("[1,8]<=[8]", (1, 8, 1)) == ("fsdp",)


def test_a_program_for_slices_separates_the_network_between_them_from_their_own() -> None:
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
    assert collectives(text, a_mesh(slices=2)) == [
        Collective("all-gather", ("fsdp",), 512, 1, 4),
        Collective("all-reduce", ("data",), 128, 1, 2, between_slices=True),
    ]
    with pytest.raises(ValueError, match="for 4 devices and the mesh has 8"):
        collectives(text, a_mesh())


def loops(limit: str, hint: str = "") -> str:
    """A loop inside of a loop of 3 trips, around an all-reduce."""
    computations = f"""%body (s: (s32[], f32[16])) -> (s32[], f32[16]) {{
  %s = (s32[], f32[16]{{0}}) parameter(0)
  %x = f32[16]{{0}} get-tuple-element(%s), index=1
  %r = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8]
  ROOT %t = (s32[], /*index=1*/f32[16]{{0}}) tuple(%x, %r)
}}

%condition (s: (s32[], f32[16])) -> pred[] {{
  %s = (s32[], f32[16]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[]{{:T(128)}} {limit}
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

%outer (o: (s32[], f32[16])) -> (s32[], f32[16]) {{
  %o = (s32[], f32[16]{{0}}) parameter(0)
  ROOT %inner = (s32[], f32[16]{{0}}) while(%o), condition=%condition, body=%body{hint}
}}

"""
    return a_module(
        "%x = (s32[], f32[16]{0}) parameter(0)",
        "ROOT %loop = (s32[], f32[16]{0}) while(%x), condition=%unread, body=%outer, "
        'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}',
        computations=computations,
    )


def test_a_collective_in_loops_counts_for_all_their_trips() -> None:
    assert collectives(loops("constant(12)"), a_mesh())[0].count == 3 * 12
    hint = ', backend_config={"known_trip_count":{"n":"7"}}'
    assert collectives(loops("constant(12)", hint), a_mesh())[0].count == 3 * 7
    with pytest.raises(ValueError, match="trips of the loop %inner is not known"):
        collectives(loops("get-tuple-element(%s), index=0"), a_mesh())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ragged-all-to-all(%x), channel_id=1", "%r: collectives of the kind ragged-all-to-all"),
        ("all-reduce(%x), channel_id=1, replica_groups=?", "unknown notation"),
        ("all-reduce(%x), channel_id=1, replica_groups={{0,1}}", "not those of 8 devices"),
        ("send(%x), channel_id=1", "%r: a send that belongs to no collective"),
    ],
)
def test_communication_that_is_not_understood_is_an_error(line: str, message: str) -> None:
    text = a_module("%x = f32[16]{0} parameter(0)", f"ROOT %r = f32[16]{{0}} {line}")
    with pytest.raises(ValueError, match=message):
        collectives(text, a_mesh())
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("func.func @main() {\n}", a_mesh())
