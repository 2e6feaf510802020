"""Generated requests to the page: none ends in a server error, shows a path, or stores what was not asked."""

import json
import os
import re
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sea_jax.labels.desk import Desk
from sea_jax.labels.questions import Question
from sea_jax.people.page import CHOICES, Page, PageSettings

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "500"))  # 10,000 in the published count
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([*CHOICES, 1, 2, "1", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(["question", "choice", "seconds", "x"]), VALUES)
BODIES = st.one_of(
    st.binary(max_size=200), FIELDS.map(lambda body: json.dumps(body).encode()), VALUES.map(lambda v: json.dumps(v).encode()),
    st.just(b"x" * 20_000),
)  # fmt: skip
PATHS = st.one_of(
    st.sampled_from(["/", "/login", "/logout", "/progress", "/api/next", "/api/answer", "/api/undo", "/api/show",
                     "/api/progress", "/static/page.js", "/static/../page.py", "/static/%2e%2e/%2e%2e/etc/passwd"]),
    TEXTS.map(lambda text: f"/{quote(text)}"), TEXTS.map(lambda text: f"/static/{quote(text)}"),
    TEXTS.map(lambda text: f"/api/next?ahead={quote(text)}&besides={quote(text)}"),
)  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A client who is logged in, its CSRF token, and the desk."""
    folder = tmp_path_factory.mktemp("attacked")
    with Desk(folder) as desk:
        desk.offer("run", [Question(i, f"prompt {i}", "a", "b") for i in range(10)])
        app = Page(desk, PageSettings(requests_per_s=1e9, hosts=("localhost",))).app
        client = TestClient(app, base_url="http://localhost", follow_redirects=False)
        client.post("/login", data=dict(name="eve"))
        token = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)[1]
        yield client, token, desk, folder


@settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_request_ends_in_a_server_error(attacked, data):
    client, token, desk, folder = attacked
    shown = desk.next("eve")  # so that there is something to answer
    if data.draw(st.booleans()):  # almost what the page's script sends
        path, method = data.draw(st.sampled_from(["/api/answer", "/api/undo", "/api/show"])), "POST"
        headers = {"x-csrf-token": token, "content-type": "application/json"}
        question = st.just(shown.id if shown else 0) | st.integers(-1, 12)
        choice = st.sampled_from([*CHOICES, "first"])
        body = json.dumps(
            dict(
                question=data.draw(question),
                choice=data.draw(choice),
                seconds=data.draw(st.just(1.0) | VALUES),
            )
        ).encode()
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
    before = {question for question, _, _ in desk.votes()}
    if path == "/logout" and method == "POST":
        return  # it would end the session that the others need
    reply = client.request(method, path, headers=headers, content=body)  # a server error is raised here
    assert reply.status_code < 500
    assert str(folder) not in reply.text and "site-packages" not in reply.text and "root:" not in reply.text
    after = {question for question, _, _ in desk.votes()}
    if not before <= after:
        assert path == "/api/undo" and reply.status_code == 200
    if after - before:
        sent = json.loads(body)
        assert (
            path == "/api/answer" and reply.status_code == 200 and after - before == {int(sent["question"])}
        )
        assert sent["choice"] in CHOICES and headers["x-csrf-token"] == token
    assert sorted(file.name for file in folder.iterdir() if "sqlite" not in file.name) == []


def test_the_attack_reached_what_it_attacks(attacked):
    """The requests above were not all refused at the door."""
    _, _, desk, _ = attacked
    with desk.reading() as db:
        assert db.execute("SELECT count(*) FROM verdicts").fetchone()[0] > 0
