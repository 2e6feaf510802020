"""Prepares a process before JAX starts: the allocator, the compilation cache, the other hosts."""

from sea_jax.errors import ServiceError
from sea_jax.types import Config

_PATIENCE = 300  # seconds, for other processes


def prepare_jax(config: Config, workdir: str) -> None:
    """What a process that computes does before JAX begins: the allocator's habits, the folder of programs."""
    from sea_jax.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    jax.config.update("jax_compilation_cache_dir", f"{config.cache_dir or f'{workdir}/cache'}/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def meet(address: str, count: int, index: int) -> None:
    """Makes this process the given one of several, before JAX begins.

    Raises:
        ServiceError: they did not meet in time.
    """
    import jax

    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=_PATIENCE)
    except Exception as error:  # a RuntimeError or one of the service's own
        said = f"{address!r}: {count} processes did not meet within {_PATIENCE} s ({error})"
        raise ServiceError(said) from None
