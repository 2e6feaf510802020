"""Runs whose duels people label: equal to runs of the oracle in process, whoever is slow, absent or killed."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import ROOT
from services import free_port
from small_experiment import METHODS, files, start
from small_run import small_parts, small_run

from configs import quickstart, smollm2
from sea_jax.errors import InputError, OpenQuestionsError, StoppedError
from sea_jax.experiment import asking, reward_training, validate
from sea_jax.labels import reading
from sea_jax.labels.desk import Desk
from sea_jax.labels.journal import FILE
from sea_jax.labels.questions import Questions
from sea_jax.people import server
from sea_jax.people.oracle import PeopleOracle

# Equal rewards are decided by the same coin as in process.
FIELDS = {"people.undo_s": 0.0, "oracle.ties": "coin", "task.oracle_seed": 3}


class Crowd:
    """Annotators in threads, who answer as the task's hidden reward until the context ends."""

    def __init__(self, folder, oracle, names=("anna", "ben"), pause_s=0.002):
        self._folder, self._oracle, self._pause_s = folder, oracle, pause_s
        self._end, self._threads = (
            threading.Event(),
            [threading.Thread(target=self._work, args=(n,)) for n in names],
        )

    def _work(self, name):
        with Desk(self._folder) as desk:
            while not self._end.is_set():
                answer_one(desk, name, self._oracle)
                time.sleep(self._pause_s)

    def __enter__(self):
        [thread.start() for thread in self._threads]

    def __exit__(self, *_):
        self._end.set()
        [thread.join() for thread in self._threads]


def answer_one(desk, name, oracle):
    """Answers the next question by a reward; False if there is none."""
    shown = desk.next(name)
    if shown is None:
        return False
    (left,) = oracle.probability([shown.prompt], [shown.left], [shown.right])
    desk.answer(shown.id, name, "left" if left > 0.5 else "right" if left < 0.5 else "tie")
    return True


@pytest.fixture
def people(tmp_path):
    """A function that runs a method with people, or goes on with it; and its oracle."""
    oracle = small_run(tmp_path / "parts", "passive", **FIELDS).oracle

    def run(method, wait, **fields):
        train = start(tmp_path, method, **FIELDS | {"oracle.kind": "people" if wait else "inbox"} | fields)
        with Questions(tmp_path) as questions:
            train(
                lambda config, folder: PeopleOracle(
                    questions, folder.name, config, (lambda: None) if wait else None
                )
            )

    return tmp_path, oracle, run


def without_names(found):
    """Files without what differs where people label: metrics of the oracle, and the probability, which is 0 or 1."""
    metrics, samples, responses, labels, alarms = found
    metrics = [
        {k: v for k, v in row.items() if not k.startswith(("oracle/", "duel/win_rate"))} for row in metrics
    ]
    return metrics, samples, responses, [row[:-2] + row[-1:] for row in labels], alarms


QUICK = ("sea", 0), ("apl", 0), ("sea", 1), ("posterior_rl", 2)
REST = [(method, 0) for method in METHODS if method not in ("sea", "apl")]


@pytest.mark.parametrize(
    ("method", "ahead"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
def test_inbox_gives_the_run_of_the_oracle_in_process_bit_for_bit(people, method, ahead, tmp_path_factory):
    """The process ends at each batch, and people answer while there is none."""
    folder, oracle, run = people
    fields = {"train.ask_ahead": ahead}
    calls = 0
    while True:
        calls += 1
        try:
            run(method, wait=False, **fields)
            break
        except OpenQuestionsError as stop:
            assert "questions are open" in str(stop) and "the same command goes on" in str(stop)
        with pytest.raises(OpenQuestionsError):  # nobody has answered: the same questions
            run(method, wait=False, **fields)
        with Desk(folder) as desk:
            assert desk.counts().open <= 4 * (ahead + 1)
            while answer_one(desk, "anna", oracle):
                pass
    assert calls >= (3 if ahead else 5) or method == "iterative"
    whole = tmp_path_factory.mktemp("whole")
    start(whole, method, **FIELDS, **fields)()
    assert without_names(files(folder, method)) == without_names(files(whole, method))
    (journal,) = folder.glob(f"runs/*/{FILE}")
    assert {row["labelled_by"] for row in reading.labels(journal)} == {"anna"}
    assert reading.faults(journal) == []


def test_a_run_learns_while_people_label(people, tmp_path_factory):
    folder, oracle, run = people
    with Crowd(folder, oracle):
        run("sea", wait=True)
    whole = tmp_path_factory.mktemp("whole")
    start(whole, "sea", **FIELDS)()
    assert without_names(files(folder, "sea")) == without_names(files(whole, "sea"))


def test_a_signal_ends_a_run_that_waits_for_people_and_no_answer_is_lost(people):
    """SIGTERM comes while one question of the batch is answered; the same command asks the other three."""
    folder, oracle, run = people

    def answer_and_stop():
        with Desk(folder) as desk:
            while not answer_one(desk, "anna", oracle):
                time.sleep(0.01)
        time.sleep(0.3)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    thread = threading.Thread(target=answer_and_stop)
    thread.start()
    with pytest.raises(StoppedError, match="while it waited for the oracle"):
        run("sea", wait=True, **{"checkpoint.grace_s": 0.0})
    thread.join()
    with Desk(folder) as desk:
        assert desk.counts()[:3] == (3, 1, 1)
    with Crowd(folder, oracle):
        run("sea", wait=True)
    with sqlite3.connect(folder / f"runs/sea-seed0/{FILE}") as db:
        times = db.execute("SELECT times_asked, count(*) FROM duels GROUP BY 1 ORDER BY 1").fetchall()
        assert times == [(1, 13), (2, 3)]


def test_questions_of_later_steps_are_open_while_the_first_are_answered(people, monkeypatch):
    """Two steps ahead and the budget: 4 questions a step, of which 12 are asked before anything is answered."""
    folder, oracle, run = people
    seen, take = [], Questions.take

    def watched(self, run, duels):
        with Desk(folder) as desk:
            if not seen or seen[-1] != desk.counts().open:
                seen.append(desk.counts().open)
            answer_one(desk, "anna", oracle)
        return take(self, run, duels)

    monkeypatch.setattr(Questions, "take", watched)
    run("sea", wait=True, **{"train.ask_ahead": 2, "train.query_budget": 20})
    assert seen[0] == max(seen) == 12 and seen[:6] == [12, 11, 10, 9, 12, 11] and seen[-1] == 1
    with Desk(folder) as desk:
        assert desk.counts()[:3] == (0, 20, 20)
    (journal,) = folder.glob(f"runs/*/{FILE}")
    rows = sorted({(row["step"], row["policy_step"]) for row in reading.labels(journal)})
    assert len(rows) >= 5 and rows == [(step, max(step - 2, 0)) for step in range(len(rows))]


def test_ties_and_bad_pairs_buy_no_label(people):
    folder, _, run = people

    class Torn:
        def probability(self, *_):
            return np.full(1, 0.5)

    with Crowd(folder, Torn()):
        run("passive", wait=True, **{"train.max_idle_steps": 2, "oracle.ties": "drop"})
    (journal,) = folder.glob(f"runs/*/{FILE}")
    assert reading.summary(journal)[1:5] == (0, 0, 8, 0)
    metrics = [row for row in files(folder, "passive")[0] if "step/finite" in row]
    assert [row["duel/void"] for row in metrics] == [1.0, 1.0]


def test_overlap_asks_so_many_and_a_resumed_run_the_same(people):
    folder, _, _ = people
    config = small_run(folder / "other", "sea", **{"people.overlap": 0.25, "people.votes": 3}).config
    with Questions(folder) as questions:
        votes = [PeopleOracle(questions, "sea-seed0", config)._votes(duel) for duel in range(4000)]
        assert votes == [PeopleOracle(questions, "sea-seed0", config)._votes(duel) for duel in range(4000)]
    assert {*votes} == {1, 3} and abs(votes.count(3) - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_fields_that_cannot_work_with_people_are_named():
    config = quickstart.get_config()
    config.oracle.kind = "people"
    config.ray.oracles = 1
    config.people.guideline = "/no/such/file"
    problems = validate.check(config).problems
    assert any("config.ray.oracles=1" in line for line in problems)
    assert any("config.people.guideline='/no/such/file'" in line for line in problems)


@pytest.mark.parametrize("kind", ["people", "inbox"])
def test_a_method_that_reads_rewards_is_refused_where_people_are_the_oracle_of_real_text(kind):
    config = smollm2.get_config()
    config.oracle.kind, config.methods, config.eval.regret = kind, ("perfect_rl",), True
    problems = validate.check(config).problems
    assert any(line.startswith("config.methods='perfect_rl'") and "not people" in line for line in problems)
    assert any(line.startswith("config.eval.regret=True: valid is False with people") for line in problems)


def test_rm_asks_no_people():
    config = quickstart.get_config()
    config.oracle.kind = "inbox"
    checks = reward_training.check(config)
    reward_training.check_embedded(checks, small_parts(16)[0])
    assert any(line.startswith("config.oracle.kind='inbox'") for line in checks.problems)


def test_the_page_is_started_again_after_sigkill_and_ends_with_the_run(tmp_path):
    config = quickstart.get_config()
    config.oracle.kind, config.people.port = "people", (port := free_port())
    with server.page(config, tmp_path) as page:
        with pytest.raises(InputError, match=f"config.people.port={port}"):
            server.PageServer(config, tmp_path)
        before = page._process
        before.kill()
        before.wait()
        page.watch()
        assert page._process.pid != before.pid
    assert page._process.returncode is not None


def test_a_page_beyond_this_machine_needs_a_token(tmp_path, monkeypatch):
    config = quickstart.get_config()
    config.oracle.kind, config.people.host = "people", "0.0.0.0"
    monkeypatch.delenv("SEA_JAX_PEOPLE_TOKEN", raising=False)
    with pytest.raises(InputError, match=r"config.people.host=0\.0\.0\.0.*SEA_JAX_PEOPLE_TOKEN"):
        server.PageServer(config, tmp_path)


def test_the_page_needs_no_jax():
    code = "import sys, sea_jax.people.server, sea_jax.people.page; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_others_ask_no_people(tmp_path):
    with asking.people(quickstart.get_config(), tmp_path) as labeller_of:
        assert labeller_of(quickstart.get_config(), tmp_path) is None
    assert not any(tmp_path.iterdir())
