"""The table of accelerators against figures that it was not made from."""

from unittest import mock

import jax
import pytest

from darl_jax.runtime import chips


def test_peak_is_known_by_exact_device_kind_and_none_elsewhere() -> None:
    known = {"TPU v4": 275e12, "TPU v5 lite": 197e12, "NVIDIA H200": 989.4e12, "TPU v2": 22.5e12}
    for kind, peak in known.items():
        assert chips.peak_flops(mock.Mock(spec=jax.Device, device_kind=kind)) == peak
    # A slice of a GPU has a fraction of the whole one's peak.
    assert "NVIDIA H100 80GB HBM3 MIG 1g.10gb" not in chips.PEAK_FLOPS


def test_no_device_kind_stands_for_two_chips() -> None:
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
    assert all(
        chips.PEAK_FLOPS[kind] == chip.peak_bf16_flops
        for chip in chips.CHIPS.values()
        for kind in chip.device_kinds
    )


@pytest.mark.parametrize(
    ("name", "gigabytes_per_second"),
    # "Bidirectional inter-chip interconnect (ICI) bandwidth per chip" of Google's documentation.
    [("v5e", 400), ("v5p", 1200), ("v6e", 800)],
)
def test_links_add_up_to_what_the_documentation_gives_for_a_chip(
    name: str, gigabytes_per_second: float
) -> None:
    both_ways = 2 * chips.CHIPS[name].interconnect.bytes_per_second
    assert both_ways == gigabytes_per_second * 1e9


def test_half_a_tpu7x_chip_has_half_of_its_rates() -> None:
    half = chips.CHIPS["tpu7x"]
    assert 2 * half.peak_bf16_flops == 2307e12
    assert 2 * half.hbm_bytes_per_second == 7380e9
    assert 2 * 2 * half.interconnect.bytes_per_second == pytest.approx(1200e9)


@pytest.mark.parametrize(
    ("name", "ratio"),
    # FLOPs for each byte of HBM at which both bounds are equal; the scaling book's "critical
    # intensity" is 240 for v5e, and 295 for an H100 with 990 TFLOP/s and 3.35 TB/s.
    [("v5e", 240), ("h100", 295)],
)
def test_ridge_of_the_roofline_is_where_the_literature_has_it(name: str, ratio: float) -> None:
    chip = chips.CHIPS[name]
    assert chip.peak_bf16_flops / chip.hbm_bytes_per_second == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_is_slower_farther_away_and_has_a_source(chip: chips.Chip) -> None:
    assert chip.source.startswith("https://")
    assert 0.7 * chip.hbm_bytes < chip.usable_hbm_bytes < chip.hbm_bytes
    inside = chip.interconnect.bytes_per_second
    assert chip.hbm_bytes_per_second > inside > chip.network_bytes_per_second
    links = 2 * chip.interconnect.torus_axes or 1
    assert chip.interconnect.links == links
