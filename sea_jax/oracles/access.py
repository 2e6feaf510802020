"""Access to services: addresses without secrets in them, and keys of the environment."""

import ipaddress
import os
import socket

from sea_jax.credentials import JUDGE_KEY, is_plain_url, mask_url
from sea_jax.errors import InputError

_MIN_TOKEN_LENGTH = 16  # characters
_PLAIN_URL = "http(s)://host[:port][/path], without user, password and query: keys are in the environment"


def read_key(variable: str) -> str:
    """Returns a key or token of the environment, without white space around it; empty if there is none.

    Raises:
        InputError: it has characters that cannot be sent. The value is not shown.
    """
    key = os.environ.get(variable, "").strip()
    in_header = variable == JUDGE_KEY  # the token is in a body, which holds any text
    if not key.isprintable() or (in_header and not key.isascii()):
        valid = f"printable {'ASCII' if in_header else 'text'}"
        raise InputError(f"{variable} of the environment: {len(key)} characters, not shown; valid is {valid}")
    return key


def require_plain_url(name: str, url: str) -> None:
    """Raises InputError, without the secrets in it, unless a URL is one that may be written to disk.

    Args:
        name: of the argument.
        url: an HTTP address, without user, password, query and fragment.
    """
    if not is_plain_url(url):
        raise InputError(f"{name}={mask_url(url)!r}: valid is {_PLAIN_URL}")


def check_address(host: str, port: int, variable: str, names: tuple[str, str] = ("--host", "--port")) -> str:
    """Checks where a service of ours is to listen.

    Args:
        host: an IPv4 address, or localhost.
        port: to listen on.
        variable: of the environment, with the token that clients must send; it may be absent on loopback.
        names: of host and port, for errors.

    Returns:
        The address to bind.

    Raises:
        InputError: the address is invalid or taken, or lacks a token.
    """
    host = "127.0.0.1" if host == "localhost" else host
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        valid = "an IPv4 address, such as 127.0.0.1 or 0.0.0.0"
        raise InputError(f"{names[0]}={host!r}: valid is {valid}") from None
    token = read_key(variable)
    if not address.is_loopback and len(token) < _MIN_TOKEN_LENGTH:
        valid = f"a token of at least {_MIN_TOKEN_LENGTH} characters in {variable}"
        raise InputError(
            f"{names[0]}={host}: can be reached from other machines; valid with {valid}, not {len(token)}"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{names[1]}={port}: {host}:{port}: {error.strerror}; valid is a free port"
            ) from None
    return host
