"""Generated requests to the chat: none ends in a server error, shows a path, or stores what was not asked."""

import json
import os
from urllib.parse import quote

import pytest
from chatting import live
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sea_jax.labels.chat import CHOICES, Pair
from sea_jax.serve.page import ACTIONS

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "300"))  # 10,000 in the published count
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([*CHOICES, *ACTIONS, 1, "1", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional=dict(role=st.sampled_from(["user", "assistant", "system"]) | VALUES, content=TEXTS | VALUES)),
    max_size=4,
)  # fmt: skip
NAMES = [
    "messages",
    "duel",
    "choice",
    "action",
    "version",
    "token",
    "stream",
    "compare",
    "temperature",
    "max_tokens",
    "user",
    "n",
]
FIELDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)
BODIES = st.one_of(
    st.binary(max_size=200), VALUES.map(lambda v: json.dumps(v).encode()), st.just(b"x" * 300_000),
    FIELDS.map(lambda body: json.dumps(body).encode()),
    st.builds(lambda fields, messages: json.dumps(fields | dict(messages=messages)).encode(), FIELDS, MESSAGES),
)  # fmt: skip
POSTED = ["/api/chat", "/api/choose", "/api/operate", "/v1/chat/completions", "/v1/feedback"]
PATHS = st.one_of(
    st.sampled_from([*POSTED, "/", "/login", "/status", "/api/status", "/v1/models", "/chat/chat.js",
                     "/chat/../page.py", "/static/%2e%2e/%2e%2e/etc/passwd", "/chat/%2e%2e/server.py"]),
    TEXTS.map(lambda text: f"/{quote(text)}"), TEXTS.map(lambda text: f"/chat/{quote(text)}"),
)  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    with live(folder, learns=False, **{"serve.pairs": 10**6}) as chat:
        client = chat.client("eve")
        yield client, chat, folder, names(folder)


def names(folder):
    return sorted(file.name for file in folder.iterdir() if "sqlite" not in file.name)


@settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_request_ends_in_a_server_error(attacked, data):
    client, chat, folder, known = attacked
    token = client.headers["x-csrf-token"]
    open_pair = chat.duels.show("eve", Pair("x", " a", " b", b"", b"", 0)).duel
    if data.draw(st.booleans()):  # almost what the page's script sends
        path, method, headers = (
            data.draw(st.sampled_from(POSTED)),
            "POST",
            {"content-type": "application/json"},
        )
        asked = st.just([dict(role="user", content="a post")]) | MESSAGES
        body = data.draw(FIELDS) | dict(
            messages=data.draw(asked), duel=data.draw(st.just(open_pair) | VALUES)
        )
        body |= dict(choice=data.draw(st.sampled_from([*CHOICES, 0, 1])))
        body |= dict(action=data.draw(st.sampled_from(ACTIONS) | VALUES))
        if path == "/v1/feedback":
            body |= dict(user="eve")
        body = json.dumps(body).encode()
    else:
        path, method = data.draw(PATHS), data.draw(METHODS)
        headers = {
            "x-csrf-token": data.draw(st.just(token) | HEADER),
            "content-type": data.draw(st.sampled_from(["application/json", "text/plain"])),
        }
        body = data.draw(BODIES) if method in ("POST", "PUT", "PATCH") else None
    if data.draw(st.integers(0, 4)) == 0:
        headers["origin"] = data.draw(HEADER)
    if data.draw(st.integers(0, 9)) == 0:
        headers["cookie"] = data.draw(HEADER)
    if data.draw(st.integers(0, 9)) == 0:
        headers["authorization"] = data.draw(HEADER)
    if chat.duels.paused():
        chat.duels.set_paused(False)  # an operator's request was in order
    before = chat.duels.totals()
    reply = client.request(method, path, headers=headers, content=body)  # a server error is raised here
    assert reply.status_code < 500
    assert str(folder) not in reply.text and "site-packages" not in reply.text and "root:" not in reply.text
    after = chat.duels.totals()
    if after.shown > before.shown:
        assert path in ("/api/chat", "/v1/chat/completions") and reply.status_code == 200
    if after.answered > before.answered:
        assert path in ("/api/choose", "/v1/feedback") and reply.status_code == 200
    assert names(folder) == known


def test_the_attack_reached_what_it_attacks(attacked):
    """The requests above were not all refused at the door."""
    _, chat, *_ = attacked
    with chat.duels.reading() as db:
        (written,) = db.execute("SELECT count(*) FROM duels WHERE prompt != 'x'").fetchone()
    assert written > 0 and chat.duels.totals().answered > 0
