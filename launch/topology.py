"""Describes accelerators by name, and makes abstract devices to compile for.

References:
    NVIDIA A100 (2021) and H100 (2023) data sheets, SXM: peak of dense bfloat16, TF32; memory, bandwidth.
    Google Cloud TPU documentation, system architecture: v5e, v5p, v6e.
"""

import dataclasses
import math
import re
from typing import Any

from sea_jax.errors import InputError

GIB = 2**30
GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        platform: 'cuda', 'tpu' or 'cpu'.
        memory: bytes that a program sees.
        flops: peak operations per second of dense bfloat16 products.
        flops_f32: the same for float32 at JAX's default precision: TF32 on a GPU, one bfloat16 pass on a TPU.
        bandwidth: memory bandwidth in bytes per second.
        usable: share of the memory for arrays; the driver and the collectives use the rest. On a GPU, set
            XLA_PYTHON_CLIENT_MEM_FRACTION to this share, since JAX's default is 0.75.
        target: CUDA only: fields and values of XLA's device description.
    """

    platform: str
    memory: int
    flops: float
    flops_f32: float
    bandwidth: float
    usable: float = 1.0
    target: tuple[tuple[str, Any], ...] = ()

    def seconds(self, dtype: Any) -> float:
        """Returns the seconds of one operation on operands of this dtype at the peak."""
        return 1.0 / (self.flops_f32 if dtype.itemsize > 2 else self.flops)


def _gpu(name: str, memory: int, flops: float, bandwidth: float, **chip: Any) -> Device:
    shared = dict(
        threads_per_block_limit=1024, threads_per_warp=32, threads_per_core_limit=2048,
        shared_memory_per_block=49_152, registers_per_core_limit=65_536, registers_per_block_limit=65_536,
        block_dim_limit_x=2**31 - 1, block_dim_limit_y=65_535, block_dim_limit_z=65_535,
        thread_dim_limit_x=1024, thread_dim_limit_y=1024, thread_dim_limit_z=64,
        device_memory_size=memory, memory_bandwidth=int(bandwidth), name=name,
    )  # fmt: skip
    return Device("cuda", memory, flops, flops / 2, bandwidth, 0.92, tuple((shared | chip).items()))


_A100 = dict(
    core_count=108, fpus_per_core=64, clock_rate_ghz=1.41, l2_cache_size=40 * 2**20,
    shared_memory_per_core=164 * 1024, shared_memory_per_block_optin=163 * 1024, capability=(8, 0),
)  # fmt: skip
_H100 = dict(
    core_count=132, fpus_per_core=128, clock_rate_ghz=1.98, l2_cache_size=50 * 2**20,
    shared_memory_per_core=228 * 1024, shared_memory_per_block_optin=227 * 1024, capability=(9, 0),
)  # fmt: skip

DEVICES: dict[str, Device] = {
    "a100-40gb": _gpu("NVIDIA A100-SXM4-40GB", 42_331_013_120, 312e12, 1.555e12, **_A100),
    "a100-80gb": _gpu("NVIDIA A100-SXM4-80GB", 85_100_068_864, 312e12, 2.039e12, **_A100),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 84_942_979_072, 989e12, 3.352e12, **_H100),
    "v5e": Device("tpu", 16 * GIB, 197e12, 197e12, 0.819e12, 0.98),
    "v5p": Device("tpu", 95 * GIB, 459e12, 459e12, 2.765e12, 0.98),
    "v6e": Device("tpu", 32 * GIB, 918e12, 918e12, 1.638e12, 0.98),
    # The host's own devices, to try out a plan; their memory and peaks are guesses.
    "cpu": Device("cpu", 4 * GIB, 1e11, 1e11, 2e10),
}
_DIMENSIONS = {"v5p": 3, "v5e": 2, "v6e": 2}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`count` devices of a kind; those of a TPU form a mesh or torus of `shape`."""

    kind: str
    count: int
    shape: tuple[int, ...] = ()

    @property
    def device(self) -> Device:
        return DEVICES[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape)) if self.shape else self.count}"


def parse(text: str) -> Topology:
    """Parses a topology such as 'a100-40gb:8', 'v5p:64' or 'v5p:4x4x4'.

    Raises:
        InputError: the kind is unknown, or the kind has no such number or shape.
    """
    kind, _, size = text.partition(":")
    valid = f"one of {', '.join(DEVICES)}, a colon and the number of devices, or a TPU's shape as v5p:4x4x4"
    if kind not in DEVICES or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise InputError(f"--topology={text}: valid is {valid}")
    shape = tuple(map(int, size.split("x")))
    dimensions = _DIMENSIONS.get(kind, 0)
    if len(shape) == 1 and dimensions:
        shape = _cuboid(shape[0], dimensions, text)
    if DEVICES[kind].platform == "cuda" and shape[0] > GPUS_PER_HOST and shape[0] % GPUS_PER_HOST:
        raise InputError(f"--topology={text}: valid is a multiple of {GPUS_PER_HOST}, the GPUs of a host")
    if len(shape) not in (1, dimensions):
        raise InputError(
            f"--topology={text}: valid is {dimensions or 1} number(s) for {kind}, not {len(shape)}"
        )
    return Topology(kind, math.prod(shape), shape if dimensions else ())


def _cuboid(count: int, dimensions: int, text: str) -> tuple[int, ...]:
    """Returns the shape nearest to a cube for a power of two chips, shorter sides first."""
    if count < 4 or count & (count - 1):
        raise InputError(f"--topology={text}: valid is a power of two from 4, or a shape")
    power = count.bit_length() - 1
    sides = [(power + i) // dimensions for i in range(dimensions)]
    return tuple(2**side for side in sides)


def devices(topology: Topology) -> list[Any]:
    """Returns abstract devices, for which programs can only be compiled; CPU devices are real."""
    import jax
    from jax.experimental import topologies

    if topology.device.platform == "cpu":
        return jax.devices("cpu")[: topology.count]
    if topology.device.platform == "tpu":
        name = str(topology)
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    hosts, each = max(topology.count // GPUS_PER_HOST, 1), min(topology.count, GPUS_PER_HOST)
    described = topologies.get_topology_desc(
        platform="cuda", target_config=_target(topology.device), topology=f"1x{hosts}x{each}"
    )
    return list(described.devices)


def _target(device: Device) -> str:
    """Returns XLA's description of a GPU, a protocol buffer in text form."""
    chip = dict(device.target)
    major, minor = chip.pop("capability")
    name = chip.pop("name")
    fields = " ".join(f"{field}: {value}" for field, value in chip.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"'
    )
