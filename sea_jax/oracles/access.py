"""Access to services: an address without secrets in it, and a key of the environment."""

import os

from sea_jax.credentials import JUDGE_KEY, is_plain_url, mask_url
from sea_jax.errors import InputError

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
