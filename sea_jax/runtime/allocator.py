"""The C allocator's habits, where they cost more than the arithmetic."""

import ctypes
import sys

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, for the next call to have it without page faults.

    XLA:CPU takes a computation's temporary memory from the allocator at each call and frees it after.
    Above 32 MiB glibc gives it back to the system, which hands out zeroed pages again at the next call:
    for this project's small models that was a fifth to a third of a training step. The process's memory
    then stays at its peak. Call it before JAX starts its threads.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl
        return False
    # Blocks of any size come from one heap, and its top is not trimmed below 2 GB.
    return all(libc.mallopt(*option) for option in (
        (_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1),
    ))  # fmt: skip
