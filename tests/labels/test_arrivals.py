"""Answers are journaled as they arrive: those of a call that fails, or of a process that dies, are not lost."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import ROOT
from services import QUICK_BACKOFF, Http, Judging, oracle_http

from sea_jax.errors import ServiceError
from sea_jax.labels import journal as journals
from sea_jax.labels.journal import ANSWERED, ASKED, UNANSWERED, Journal
from sea_jax.oracles import patience
from sea_jax.oracles.judge import Judge, Prices
from sea_jax.oracles.labeller import Labeller, Origin
from sea_jax.oracles.remote import RemoteOracle, RequestLimits

LIMITS = RequestLimits(timeout_s=5.0, patience_s=5.0, attempts=2, in_flight=2, request_size=2)
TEXTS = [f"x{i}" for i in range(6)], ["a" * i for i in range(1, 7)], ["a" * 4] * 3 + ["b"] * 3
ORIGIN = Origin(step=0, policy_step=0, rows=np.arange(6))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(patience, "_BACKOFF", QUICK_BACKOFF)


def rows(folder, columns):
    with sqlite3.connect(folder / journals.FILE) as db:
        return db.execute(f"SELECT {columns} FROM duels ORDER BY id").fetchall()


def refuse_fifth(n, top):
    return (403, {}, b'{"error": {"message": "no more money"}}') if n == 4 else top


def judge(server):
    return Judge(f"{server.url}/v1", "gpt", 0, LIMITS, prices=Prices(1.0, 0.0))


def remote(server):
    return RemoteOracle(server.url, limits=LIMITS)


def test_what_a_judge_answered_before_it_refused_is_not_paid_twice(tmp_path):
    """The fifth request is refused; one may be under way beside it. The next process asks for the rest."""
    with Http(judging := Judging(spoil=refuse_fifth)) as server:
        with Journal(tmp_path, "judge") as journal, pytest.raises(ServiceError, match="403"):
            Labeller(judge(server), journal=journal).label(*TEXTS, 0, ORIGIN)
        before = rows(tmp_path, "state, prompt, cost")
        paid = [prompt for state, prompt, _ in before if state == ANSWERED]
        assert len(paid) == len(judging.seen) - 1 >= 4
        assert {state for state, *_ in before} == {ANSWERED, ASKED}
        first = len(judging.seen)
        with Journal(tmp_path, "judge") as journal:
            labeller = Labeller(judge(server), journal=journal)
            labels = labeller.label(*TEXTS, 0, ORIGIN)
        asked = [text["messages"][0]["content"] for *_, text in judging.seen[first:]]
    assert len(asked) == 6 - len(paid) and not any(
        f"\n{prompt}\n" in text for prompt in paid for text in asked
    )
    plain = [len(a) > len(b) for a, b in zip(*TEXTS[1:], strict=True)]
    assert labels.prefers_first.tolist()[:3] == plain[:3] and labeller.num_queries == 6
    costs = [cost for (cost,) in rows(tmp_path, "cost")]
    np.testing.assert_allclose(sum(costs), 6 * 200e-6)


def test_a_reply_that_cannot_be_read_is_journaled_as_unanswered(tmp_path):
    with Http(Judging(spoil=lambda n, top: [])) as server, Journal(tmp_path, "judge") as journal:
        labels = Labeller(judge(server), journal=journal).label(*TEXTS, 0, ORIGIN)
    assert not labels.answered.any()
    assert rows(tmp_path, "state, probability") == [(UNANSWERED, None)] * 6


def test_the_answers_of_a_service_stay_though_it_fails_later(tmp_path):
    """Three requests of two comparisons; those with x4 are refused."""

    def refuse(request, good):
        return (404, {}, b"gone") if "x4" in str(request) else good

    with (
        oracle_http(refuse) as server,
        Journal(tmp_path, "service") as journal,
        pytest.raises(ServiceError, match="404"),
    ):
        Labeller(remote(server), journal=journal).label(*TEXTS, 0, ORIGIN)
    states = [state for (state,) in rows(tmp_path, "state")]
    assert states == [ANSWERED] * 4 + [ASKED] * 2


ASK = """
import pathlib, sys
import numpy as np
from sea_jax.labels.journal import Journal
from sea_jax.oracles.labeller import Labeller, Origin
from sea_jax.oracles.remote import RemoteOracle, RequestLimits
oracle = RemoteOracle(sys.argv[1], limits=RequestLimits(in_flight=1, request_size=2))
journal = Journal(pathlib.Path(sys.argv[2]), "service")
texts = [f"x{i}" for i in range(6)], ["a"] * 6, ["b"] * 6
Labeller(oracle, journal=journal).label(*texts, 0, Origin(0, 0, np.arange(6)))
"""


def test_a_process_that_is_killed_while_it_waits_keeps_what_has_arrived(tmp_path):
    """The second of three requests is never answered."""
    waiting, release = threading.Event(), threading.Event()

    def hold(request, good):
        if "x2" in str(request):
            waiting.set()
            release.wait(60)
        return good

    with oracle_http(hold) as server:
        process = subprocess.Popen([sys.executable, "-c", ASK, server.url, str(tmp_path)], cwd=ROOT)
        assert waiting.wait(60)
        while rows(tmp_path, "count(*)")[0][0] < 6 or rows(tmp_path, "state")[1] != (ANSWERED,):
            time.sleep(0.01)  # the first answer is on its way to the disk
        process.kill()
        assert process.wait() == -signal.SIGKILL
        release.set()
    assert [state for (state,) in rows(tmp_path, "state")] == [ANSWERED] * 2 + [ASKED] * 4
