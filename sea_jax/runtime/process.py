"""Prepares a process before JAX starts: the allocator, the compilation cache, the other hosts."""

import contextlib
import importlib.metadata
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterator

from absl import logging

from sea_jax.errors import ServiceError
from sea_jax.types import Config

# On a CPU, programs without fusion emitters compile in less than half the time and run no slower. JAX ends
# the process at a flag that it does not know: only the release that was tried gets the flag.
_FAST_COMPILE, _RELEASE = "--xla_cpu_use_fusion_emitters=false", "0.10."
_MEETING_SECONDS = 300  # to wait for the other processes
_LOST_SECONDS = 20  # without a sign of life, after which a process counts as lost
LOST_STATUS = os.EX_UNAVAILABLE  # 69: another process of the run is lost
_LOST = re.compile(r"Gloo \w+ failed|NCCL|coordination service|Connection (closed|reset) by peer")


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

    Process 0 listens at the host that is given, if that is an address of its machine.

    Args:
        address: host:port of process 0.
        count: number of processes.
        index: number of this process, from 0.

    Raises:
        ServiceError: the processes did not meet in time.
    """
    import jax

    try:
        jax.distributed.initialize(
            address, count, index, initialization_timeout=_MEETING_SECONDS,
            coordinator_bind_address=bind_address(address) if index == 0 else None,
            heartbeat_timeout_seconds=_LOST_SECONDS,
        )  # fmt: skip
    except Exception as error:  # JAX raises RuntimeError, or an error of its coordination service
        said = f"{address!r}: {count} processes did not meet within {_MEETING_SECONDS} s ({error})"
        raise ServiceError(said) from None


@contextlib.contextmanager
def end_where_another_is_lost() -> Iterator[None]:
    """Ends this process, with one line and status 69, where a collective fails as another process is lost.

    Where no collective fails, JAX aborts after at most 20 seconds, and where process 0 is lost at once;
    `supervisor` turns that into the same status.
    """
    import jax

    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        said = "another process of the run is lost; the same command on all hosts goes on"
        print(f"error: {said} ({' '.join(str(error).split())[:200]})", file=sys.stderr, flush=True)
        os._exit(LOST_STATUS)  # an orderly end would wait for the lost one


def bind_address(address: str) -> str | None:
    """Returns where process 0 listens for the others, None for all interfaces, of which it warns.

    JAX would always listen on all of them.

    Args:
        address: host:port, as the others call it.

    Returns:
        The host's IP address and the port. None if the host is no address of this machine, as behind a
        forwarding service, or if its name means loopback here alone, as in Debian's /etc/hosts: the others
        could not reach it.
    """
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    for found in _addresses(name):
        ip = ipaddress.ip_address(found)
        if ip.is_loopback and name not in ("localhost", found):
            continue
        family, shown = (socket.AF_INET, found) if ip.version == 4 else (socket.AF_INET6, f"[{found}]")
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((found, 0))
            return f"{shown}:{port}"
    reason = "is no address of this machine that others reach, so process 0 listens on all its interfaces"
    logging.warning("%s %s", address, reason)
    return None


def _addresses(host: str) -> list[str]:
    """Returns the IP addresses of a host, IPv4 first; none if it is unknown."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return []
    return sorted(map(str, found), key=lambda ip: (":" in ip, ip))
