"""Prepares a process before JAX starts: the allocator, the compilation cache, the other hosts."""

import importlib.metadata
import os

from sea_jax.errors import ServiceError
from sea_jax.types import Config

# On a CPU, programs without fusion emitters compile in less than half the time and run no slower. JAX ends
# the process at a flag that it does not know: only the release that was tried gets the flag.
_FAST_COMPILE, _RELEASE = "--xla_cpu_use_fusion_emitters=false", "0.10."
_MEETING_SECONDS = 300  # to wait for the other processes


def fast_compile_flag() -> str:
    """Returns XLA's flag for faster compilation on a CPU; empty for a release that was not tried."""
    return _FAST_COMPILE if importlib.metadata.version("jax").startswith(_RELEASE) else ""


def prepare_jax(config: Config, workdir: str) -> None:
    """Sets allocator, XLA flags and the folder of compiled programs; call it before JAX computes anything.

    Args:
        config: its cache_dir holds the programs.
        workdir: holds them where cache_dir is empty.
    """
    from sea_jax.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_use_fusion_emitters" not in flags:
        os.environ["XLA_FLAGS"] = f"{fast_compile_flag()} {flags}".strip()
    jax.config.update("jax_compilation_cache_dir", f"{config.cache_dir or f'{workdir}/cache'}/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def meet(address: str, count: int, index: int) -> None:
    """Joins the processes of a run on several hosts; call it before JAX computes anything.

    Args:
        address: host:port of process 0.
        count: number of processes.
        index: number of this process, from 0.

    Raises:
        ServiceError: the processes did not meet in time.
    """
    import jax

    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=_MEETING_SECONDS)
    except Exception as error:  # JAX raises RuntimeError, or an error of its coordination service
        said = f"{address!r}: {count} processes did not meet within {_MEETING_SECONDS} s ({error})"
        raise ServiceError(said) from None
