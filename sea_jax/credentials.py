"""Keys and tokens: the environment holds them, and no text of ours shows them."""

import functools
import json
import re
from collections.abc import Mapping
from os import environ
from urllib.parse import quote, urlsplit

JUDGE_KEY = "OPENAI_API_KEY"
ORACLE_TOKEN = "SEA_JAX_ORACLE_TOKEN"
PEOPLE_TOKEN = "SEA_JAX_PEOPLE_TOKEN"
CHAT_TOKEN = "SEA_JAX_CHAT_TOKEN"
OPERATOR_TOKEN = "SEA_JAX_OPERATOR_TOKEN"
# The last three are read by huggingface_hub and Ray.
VARIABLES = (
    JUDGE_KEY, ORACLE_TOKEN, PEOPLE_TOKEN, CHAT_TOKEN, OPERATOR_TOKEN,
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_AUTH_TOKEN",
)  # fmt: skip
_SHORTEST = 8  # characters; shorter values, such as 'none' and 'EMPTY', are no secrets
_USER_OF_URL = re.compile(r"(?<=://)[^/?#\s]*@")  # 'user:password@'


def redact(text: str) -> str:
    """Replaces keys and tokens of the environment, and users and passwords of URLs, by their names.

    A service may send back what it was sent, so every text that came from one passes here before it is shown
    or cut.
    """
    for name in VARIABLES:
        value = environ.get(name, "").strip()
        if len(value) >= _SHORTEST:
            text = _spellings(value).sub(f"[{name}]", text)
    return _USER_OF_URL.sub("[credentials]@", text)


@functools.lru_cache(16)
def _spellings(value: str) -> re.Pattern[str]:
    """Matches a value as it stands, and as Python, JSON and URLs spell it."""
    spelled = {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
    return re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True))))


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for a process that needs no key or token."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}


def is_plain_url(url: str) -> bool:
    """Returns whether a text is an HTTP address, without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or the host no address
        return False
    return is_http and not re.search(r"[@?#\s]", url)


def mask_url(url: str) -> str:
    """Returns a URL to be shown, without what may be a user, a password or a key in it."""
    start, at, host = url.rpartition("@")
    scheme = start[: start.find("://") + 3] if "://" in start else ""
    shown = f"{scheme}[credentials]@{host}" if at else url
    return re.sub(r"[?#].+", "?[credentials]", shown, flags=re.DOTALL)
