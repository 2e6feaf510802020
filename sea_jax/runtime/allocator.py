"""Sets options of the C allocator that cost more time than the arithmetic."""

import ctypes
import importlib.util
import os
import sys

# Options of mallopt in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin", "libtpu")


def runs_on_cpu() -> bool:
    """Returns whether JAX computes on the CPU, by JAX_PLATFORMS or else by the installed plugins."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in _ACCELERATORS)


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory, so that the next call gets it without page faults.

    XLA:CPU allocates a computation's temporary memory at each call and frees it afterwards. Above 32 MiB
    glibc returns it to the system, which zeroes its pages for the next call: for this project's small models
    that took a fifth to a third of a training step. In exchange the process's memory stays at its peak. Call
    this before JAX starts its threads.

    On an accelerator there is nothing to gain, so nothing is set there. A run on an H100 with these options
    stood still, with much time in the system's kernel; whether they were the cause is not known.

    Returns:
        True if the options were set, False on an accelerator and where the C library is not glibc.
    """
    if not sys.platform.startswith("linux") or not runs_on_cpu():
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl
        return False
    # Blocks of any size come from one heap, and its top is not trimmed below 2 GB.
    return all(libc.mallopt(*option) for option in (
        (_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1),
    ))  # fmt: skip
