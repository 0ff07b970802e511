"""The table of accelerators against figures that it was not made from."""

from unittest import mock

import jax
import pytest

from darl_jax.runtime import chips


def test_peak_is_known_by_exact_device_kind_and_none_elsewhere() -> None:
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
    for chip in chips.CHIPS.values():
        for kind in chip.device_kinds:
            device = mock.Mock(spec=jax.Device, device_kind=kind)
            assert chips.peak_flops(device) == chip.peak_bf16_flops
    # A slice of a GPU has a fraction of the whole one's peak.
    assert "NVIDIA H100 80GB HBM3 MIG 1g.10gb" not in chips.PEAK_FLOPS


def test_rates_agree_with_other_sources() -> None:
    # "Bidirectional inter-chip interconnect (ICI) bandwidth per chip" of Google's documentation.
    for name, gigabytes_per_second in (("v5e", 400), ("v5p", 1200), ("v6e", 800)):
        both_ways = 2 * chips.CHIPS[name].interconnect.bytes_per_second
        assert both_ways == gigabytes_per_second * 1e9
    # Half a chip is a device of tpu7x.
    half = chips.CHIPS["tpu7x"]
    assert 2 * half.peak_bf16_flops == 2307e12
    assert 2 * half.hbm_bytes_per_second == 7380e9
    # FLOPs for each byte of HBM at which both bounds are equal; the scaling book's "critical
    # intensity" is 240 for v5e, and 295 for an H100 with 990 TFLOP/s and 3.35 TB/s.
    for name, ratio in (("v5e", 240), ("h100", 295)):
        chip = chips.CHIPS[name]
        assert chip.peak_bf16_flops / chip.hbm_bytes_per_second == pytest.approx(ratio, rel=0.01)


def test_every_chip_is_slower_farther_away() -> None:
    for chip in chips.CHIPS.values():
        assert 0.7 * chip.hbm_bytes < chip.usable_hbm_bytes < chip.hbm_bytes
        inside = chip.interconnect.bytes_per_second
        assert chip.hbm_bytes_per_second > inside > chip.network_bytes_per_second
        assert chip.interconnect.links == (2 * chip.interconnect.torus_axes or 1)
