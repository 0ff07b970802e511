"""Rates of accelerators, in one table with sources.

Every figure is that of one jax.Device. This is the chip, except on TPU v2, v3 and TPU7x, whose
chips are two devices each: there the chip's figures are halved.

    BOOK  the interconnect's table in https://jax-ml.github.io/scaling-book/tpus
"""

import dataclasses

import jax

_GIB = 2**30
_MIB = 2**20

# XLA's share of a GPU's memory, https://docs.jax.dev/en/latest/gpu_memory_allocation.html; more is
# had by XLA_PYTHON_CLIENT_MEM_FRACTION.
_GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """Fast network that joins devices: a TPU torus, or NVLink and its switch."""

    links: int  # of one device
    link_bytes_per_second: float  # of one link, one way; it carries as much the other way
    torus_axes: int  # each has two links of every device; 0 where a switch joins all with all
    wrap_multiple: int  # a torus axis that is this long, or a multiple, closes to a ring; else 0
    max_devices: int  # that it joins

    @property
    def bytes_per_second(self) -> float:
        """Rate at which a device can send while it receives as much."""
        return self.links * self.link_bytes_per_second


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of one device."""

    name: str
    device_kinds: tuple[str, ...]  # as jax.Device.device_kind has it
    peak_bf16_flops: float  # dense, FLOP/s
    hbm_bytes: int
    usable_hbm_bytes: int  # by a program; the TPU compiler refuses one that needs more
    hbm_bytes_per_second: float  # read and written together
    interconnect: Interconnect
    network_bytes_per_second: float  # one way, between what the interconnect does not join


def _torus(axes: int, link: float, wrap_multiple: int, max_devices: int) -> Interconnect:
    return Interconnect(2 * axes, link, axes, wrap_multiple, max_devices)


def _gpu(
    name: str, kind: str, flops: float, mib: int, hbm: float, nvlink: float, network: float
) -> Chip:
    return Chip(
        name=name,
        device_kinds=(kind,),
        peak_bf16_flops=flops,
        hbm_bytes=mib * _MIB,
        usable_hbm_bytes=int(_GPU_SHARE * mib * _MIB),
        hbm_bytes_per_second=hbm,
        interconnect=Interconnect(1, nvlink, 0, 0, 8),  # the eight GPUs of a DGX or HGX board
        network_bytes_per_second=network,
    )


# The usable memory of TPUs is what libtpu 0.0.42.1 names when it refuses a program: "exceeds
# available HBM (15.75G)". GPUs' memory is what nvidia-smi shows. The bidirectional figures for a
# chip in Google's documentation are twice its links times BOOK's one-way rate (but for v4, which
# it does not give).
_CHIPS = (
    # https://cloud.google.com/tpu/docs/v4 BOOK
    Chip(
        name="v4",
        device_kinds=("TPU v4",),
        peak_bf16_flops=275e12,
        hbm_bytes=32 * _GIB,
        usable_hbm_bytes=int(30.75 * _GIB),
        hbm_bytes_per_second=1200e9,
        interconnect=_torus(3, 45e9, 4, 4096),
        network_bytes_per_second=25e9 / 4,  # BOOK: 25 GB/s a host, which has 4 chips
    ),
    # https://cloud.google.com/tpu/docs/v5e BOOK
    Chip(
        name="v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        peak_bf16_flops=197e12,
        hbm_bytes=16 * _GIB,
        usable_hbm_bytes=int(15.75 * _GIB),
        hbm_bytes_per_second=819e9,
        interconnect=_torus(2, 50e9, 16, 256),
        network_bytes_per_second=6400e9 / 8 / 256,  # 6.4 Tbit/s a pod
    ),
    # https://cloud.google.com/tpu/docs/v5p BOOK
    Chip(
        name="v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        peak_bf16_flops=459e12,
        hbm_bytes=96 * _GIB,  # BOOK; the documentation's 95 GiB are fewer than the compiler grants
        usable_hbm_bytes=int(95.74 * _GIB),
        hbm_bytes_per_second=2765e9,
        interconnect=_torus(3, 100e9, 4, 6144),
        network_bytes_per_second=50e9 / 8,
    ),
    # https://cloud.google.com/tpu/docs/v6e https://cloud.google.com/tpu/docs/tpu7x BOOK
    Chip(
        name="v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        peak_bf16_flops=918e12,
        hbm_bytes=32 * _GIB,
        usable_hbm_bytes=int(31.25 * _GIB),
        hbm_bytes_per_second=1638e9,
        interconnect=_torus(2, 100e9, 16, 256),
        network_bytes_per_second=100e9 / 8,
    ),
    # https://cloud.google.com/tpu/docs/tpu7x
    Chip(
        name="tpu7x",
        device_kinds=("TPU7x",),
        peak_bf16_flops=2307e12 / 2,
        hbm_bytes=192 * _GIB // 2,
        usable_hbm_bytes=int(94.75 * _GIB),
        hbm_bytes_per_second=7380e9 / 2,
        # 1200 GB/s both ways for a chip's six links, which its two devices share. They are joined
        # to each other by something faster, which is not counted.
        interconnect=_torus(3, 1200e9 / 2 / 6 / 2, 4, 2 * 9216),
        network_bytes_per_second=100e9 / 8 / 2,
    ),
    # https://www.nvidia.com/en-us/data-center/: a100, h100, h200, dgx-b200. A DGX A100 has a 200
    # Gbit/s adapter for each GPU, those of H100, H200 and B200 have 400 Gbit/s.
    _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 312e12, 40960, 1555e9, 300e9, 200e9 / 8),
    _gpu("a100-80", "NVIDIA A100-SXM4-80GB", 312e12, 81920, 2039e9, 300e9, 200e9 / 8),
    _gpu("h100", "NVIDIA H100 80GB HBM3", 989.4e12, 81559, 3350e9, 450e9, 400e9 / 8),
    _gpu("h200", "NVIDIA H200", 989.4e12, 143771, 4800e9, 450e9, 400e9 / 8),
    _gpu("b200", "NVIDIA B200", 2250e12, 183359, 8000e9, 900e9, 400e9 / 8),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _CHIPS}

# Dense bfloat16 peak of one jax.Device by its device_kind. An unknown kind (another form factor, a
# slice of a GPU) has no entry rather than a near one: a wrong peak is worse than none.
PEAK_FLOPS: dict[str, float] = {
    **{kind: chip.peak_bf16_flops for chip in _CHIPS for kind in chip.device_kinds},
    # Google Cloud's TPU documentation: 45 and 123 TFLOP/s a chip.
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    # NVIDIA's data sheets, bfloat16 tensor core without sparsity (where only the figure with
    # sparsity is printed, half of it).
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    # Volta and Turing have no bfloat16; theirs is the float16 tensor core.
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla V100-PCIE-16GB": 112e12,
    "Tesla V100-PCIE-32GB": 112e12,
    "Tesla T4": 65e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None where it is not known, such as on a CPU."""
    return PEAK_FLOPS.get(device.device_kind)
