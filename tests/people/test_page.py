"""The page's HTTP interface: who may do what, what is refused, and that no text becomes HTML."""

import re
import time
import types

import pytest
from starlette.testclient import TestClient

from sea_jax.labels.desk import Desk
from sea_jax.labels.questions import Question
from sea_jax.people import limits
from sea_jax.people import page as pages
from sea_jax.people.page import CHOICES, Page, PageSettings

TOKEN = "a token of 24 characters"
SCRIPT = "<script>document.title = 'mine'</script>"


@pytest.fixture
def desk(tmp_path):
    with Desk(tmp_path) as desk:
        desk.offer("sea-seed0", [Question(i, SCRIPT, f"first {i}", f"second {i}") for i in range(1, 9)])
        desk.set_budget("sea-seed0", 100)
        yield desk


def client_of(desk, **settings):
    app = Page(desk, PageSettings(**{"requests_per_s": 1e6, "hosts": ("localhost",)} | settings)).app
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


def log_in(client, name="anna", token=""):
    reply = client.post("/login", data=dict(name=name, token=token))
    assert reply.status_code == 303, reply.text
    client.headers["x-csrf-token"] = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)[1]
    return client


@pytest.fixture
def client(desk):
    return log_in(client_of(desk))


def test_an_annotator_answers_takes_back_and_sees_the_progress(client, desk):
    shown = client.get("/api/next").json()["question"]
    assert shown["prompt"] == SCRIPT and {shown["left"].split()[0], shown["right"].split()[0]} == {
        "first",
        "second",
    }
    ahead = client.get("/api/next", params=dict(ahead=1, besides=shown["id"])).json()["question"]
    assert ahead["id"] != shown["id"]
    facts = client.post("/api/answer", json=dict(question=shown["id"], choice="left", seconds=2)).json()
    assert facts == dict(
        open=7, verdicts=1, annotators=1, yours=1, run="sea-seed0", labels=0, budget=100, win_rate=None
    )
    assert client.post("/api/show", json=dict(question=ahead["id"])).json()["question"] == ahead
    assert client.post("/api/undo", json={}).json()["question"] == shown
    assert client.get("/api/progress").json()["yours"] == 0
    assert client.post("/api/undo", json={}).status_code == 409
    for choice in CHOICES:
        question = client.get("/api/next").json()["question"]["id"]
        assert client.post("/api/answer", json=dict(question=question, choice=choice)).status_code == 200
    assert len(desk.votes()) == 4
    page = client.get("/progress").text
    assert "anna" in page and "unknown yet" in page


def test_questions_of_annotators_who_left_are_handed_out_again(tmp_path, monkeypatch):
    """Those of an annotator whose page is open are not."""
    now = [1000.0]
    monkeypatch.setattr(pages, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    with Desk(tmp_path) as desk:
        desk.offer("run", [Question(i, f"prompt {i}", "a", "b") for i in range(2)])
        app = Page(desk, PageSettings(requests_per_s=1e6, hosts=("localhost",))).app
        anna, ben, carl = (
            log_in(TestClient(app, base_url="http://localhost", follow_redirects=False), name)
            for name in ("anna", "ben", "carl")
        )
        mine = [client.get("/api/next").json()["question"]["id"] for client in (anna, ben)]
        assert carl.get("/api/next").json()["question"] is None
        for _ in range(4):  # ben's page is open, anna's was closed
            now[0] += 5
            ben.get("/api/progress")
        assert carl.get("/api/next").json()["question"]["id"] == mine[0]
        verdict = dict(choice="left", seconds=1)
        assert anna.post("/api/answer", json=verdict | dict(question=mine[0])).status_code == 409
        assert ben.post("/api/answer", json=verdict | dict(question=mine[1])).status_code == 200


def test_the_same_verdict_may_be_sent_again(client, desk):
    question = client.get("/api/next").json()["question"]["id"]
    send = lambda choice: client.post("/api/answer", json=dict(question=question, choice=choice)).status_code  # noqa: E731
    assert [send("left"), send("left"), send("right")] == [200, 200, 409]
    assert len(desk.votes()) == 1


def test_agreement_is_shown(desk):
    for name in ("anna", "ben"):
        desk.offer("shared", [Question(i, "x", "a", "b", -1, votes=2) for i in range(3)])
        client = log_in(client_of(desk), name)
        for _ in range(3):
            shown = client.get("/api/next").json()["question"]
            choice = "left" if shown["left"] == "a" else "right"
            client.post("/api/answer", json=dict(question=shown["id"], choice=choice))
    page = client.get("/progress").text
    assert "anna, ben" in page and "<td>3</td>" in page


def test_who_has_not_logged_in_gets_nothing(desk):
    client = client_of(desk, token=TOKEN)
    assert "Token" in client.get("/").text and SCRIPT not in client.get("/").text
    assert client.get("/api/next").status_code == client.get("/api/progress").status_code == 401
    assert client.post("/api/answer", json=dict(question=1, choice="left")).status_code == 401
    assert client.get("/progress").status_code == 303
    for token in ("", "wrong", TOKEN + " ", TOKEN[:-1], "\N{SNOWMAN}"):
        reply = client.post("/login", data=dict(name="eve", token=token))
        assert reply.status_code == 403 and "set-cookie" not in reply.headers
        assert TOKEN not in reply.text
    client.cookies.set("sea_jax_session", "guessed")
    assert client.get("/api/next").status_code == 401
    log_in(client, "anna", TOKEN)
    assert client.get("/api/next").status_code == 200
    client.post("/logout")
    assert client.get("/api/next").status_code == 401


@pytest.mark.parametrize("name", ["", "   ", "a" * 41, "a,b", "a\0b", "\u202eanna"])
def test_names(desk, name):
    reply = client_of(desk).post("/login", data=dict(name=name))
    assert reply.status_code == 400 and "set-cookie" not in reply.headers


def test_the_session_is_safe_from_scripts_other_sites_and_whoever_reads_the_file(desk):
    client = client_of(desk)
    cookie = client.post("/login", data=dict(name="anna")).headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    key = re.match(r"[^=]+=([^;]+)", cookie)[1]
    assert len(key) >= 43
    with desk.reading() as db:
        assert key not in str(db.execute("SELECT * FROM sessions").fetchall())


def test_a_name_is_text(desk):
    client = log_in(client_of(desk), "<b>ann</b>")
    question = client.get("/api/next").json()["question"]["id"]
    client.post("/api/answer", json=dict(question=question, choice="left"))
    for path in ("/", "/progress"):
        assert "<b>ann" not in client.get(path).text and "&lt;b&gt;ann" in client.get(path).text


def test_a_guideline_is_text(desk):
    assert "&lt;script&gt;" in log_in(client_of(desk, guideline=SCRIPT)).get("/").text


def test_another_site_cannot_send_for_an_annotator(client, desk):
    body = dict(question=client.get("/api/next").json()["question"]["id"], choice="left")
    for headers in (
        {"origin": "http://evil.example"}, {"x-csrf-token": ""}, {"x-csrf-token": "wrong"}, {"origin": "null"},
    ):  # fmt: skip
        assert client.post("/api/answer", json=body, headers=headers).status_code == 403
    assert (
        client.post("/login", data=dict(name="x"), headers={"origin": "http://evil.example"}).status_code
        == 403
    )
    assert client.post("/api/answer", data=body).status_code == 415
    assert desk.votes() == []
    assert client.post("/api/answer", json=body, headers={"origin": "http://localhost"}).status_code == 200
    # A name of another site that points to this machine (DNS rebinding).
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b'"x"', b"null", b"\xff", b"[" * 9000, b"{}", b'{"question": 1}', b'{"question": true}',
     b'{"question": -1, "choice": "left"}', b'{"question": 1e300, "choice": "left"}',
     b'{"question": 99999999999999999999, "choice": "left"}', b'{"question": 1, "choice": "first"}',
     b'{"question": 1, "choice": ["left"]}', b'{"question": 1, "choice": "left", "seconds": NaN}',
     b'{"question": 1, "choice": "left", "seconds": -1}', b'{"question": 1, "choice": "left", "seconds": "2"}'],
)  # fmt: skip
def test_bodies_that_are_none(client, desk, body):
    for path in ("answer", "show"):
        reply = client.post(f"/api/{path}", content=body, headers={"content-type": "application/json"})
        valid_for_show = (
            path == "show" and body[:14] == b'{"question": 1' and body[:17] != b'{"question": 1e30'
        )
        assert reply.status_code == (200 if valid_for_show else 400), (path, reply.text)
    assert desk.votes() == []


def test_a_request_of_a_megabyte_is_refused_whatever_length_it_claims(client):
    large, headers = b"x" * 1_000_000, {"content-type": "application/json"}
    assert client.post("/api/answer", content=large, headers=headers).status_code == 413
    in_parts = (large[i : i + 1000] for i in range(0, len(large), 1000))
    assert client.post("/api/answer", content=in_parts, headers=headers).status_code == 413
    assert client.post("/login", content=large).status_code == 413
    assert client.get("/api/next").status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/static//etc/passwd", "/nothing",
             "/static/", "/api", "/api/answers"],
)  # fmt: skip
def test_paths_that_are_none(client, path):
    reply = client.get(path)
    assert reply.status_code == 404 and "/work" not in reply.text and "people" not in reply.text
    assert client.put("/").status_code == 405


def test_what_a_browser_may_do_with_a_page_is_bounded(client):
    for path in ("/", "/progress", "/api/next", "/static/page.js", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    page = client.get("/").text
    assert not re.search(r"<script>|\son\w+=|style=", page)  # nothing inline, which the policy would block
    assert not re.search(r"https?://", page + client.get("/static/page.js").text)  # works without a network


def test_rates(desk, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: clock[0])
    anna, ben = (log_in(client_of(desk, requests_per_s=5.0), name) for name in ("anna", "ben"))
    statuses = [anna.get("/api/next").status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert ben.get("/api/next").status_code == 200
    clock[0] += 0.4
    assert [anna.get("/api/next").status_code for _ in range(3)] == [200, 200, 429]
    eve = client_of(desk, requests_per_s=5.0, token=TOKEN)
    tries = [eve.post("/login", data=dict(name="eve", token="guess")).status_code for _ in range(12)]
    assert tries == [403] * 10 + [429] * 2
