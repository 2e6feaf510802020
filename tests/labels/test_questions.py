"""Questions that are handed out to people: leases, verdicts, undo, and what a run takes."""

import random
import sqlite3
import threading

import pytest

from sea_jax.errors import InputError, StorageError
from sea_jax.labels import desk as desks
from sea_jax.labels.desk import Desk, NotLeasedError
from sea_jax.labels.question_tables import BOTH_BAD, FILE, SECOND, SKIP, TIE
from sea_jax.labels.questions import Question, Questions

RUN = "sea-seed0"


def question(duel, uncertainty=0.0, votes=1, step=0):
    return Question(duel, f"prompt {duel}", f"first {duel}", f"second {duel}", step, uncertainty, votes)


@pytest.fixture
def desk(tmp_path):
    with Desk(tmp_path) as desk:
        yield desk


def verdict_of(desk, annotator, pick):
    """Answers the annotator's next question with the side that `pick` names; returns its duel."""
    shown = desk.next(annotator)
    assert {shown.left.split()[0], shown.right.split()[0]} == {"first", "second"}
    choice = pick if pick not in ("first", "second") else "left" if shown.left.startswith(pick) else "right"
    desk.answer(shown.id, annotator, choice, 1.5)
    return int(shown.prompt.split()[1])


def test_a_run_takes_what_people_said_whatever_side_it_was_on(desk):
    desk.offer(RUN, [question(i) for i in range(40)])
    said = {}
    for i in range(40):
        pick = ("first", "second", TIE, BOTH_BAD)[i % 4]
        said[verdict_of(desk, "anna", pick)] = pick
    assert {one.duel: one.verdicts for one in desk.take(RUN, range(40))} == {
        duel: (("anna", pick),) for duel, pick in said.items()
    }
    with desk.reading() as db:
        sides = [side for (side,) in db.execute("SELECT first_on_left FROM verdicts")]
        assert db.execute("SELECT DISTINCT seconds FROM verdicts").fetchall() == [(1.5,)]
    assert 5 < sum(sides) < 35  # sides are swapped at random: 7σ
    assert desk.next("anna") is None and desk.counts() == (0, 40, 40, 1)


def test_what_the_posterior_is_least_sure_of_comes_first(desk):
    """Of the step that the run waits for; later steps come later."""
    desk.offer(RUN, [question(4, 0.9, step=1), question(5, 0.8, step=1)])
    desk.offer(RUN, [question(1, 0.1), question(2, 0.3), question(3, 0.2)])
    assert [verdict_of(desk, "anna", "first") for _ in range(5)] == [2, 3, 1, 4, 5]


def test_two_annotators_never_have_the_same_question(desk):
    """Eight annotators in threads; a question that one sees is nobody else's, and every duel gets one verdict."""
    desk.offer(RUN, [question(i) for i in range(120)])
    held, lock, failures = set(), threading.Lock(), []

    def work(name):
        rng, ahead = random.Random(name), None
        while True:
            shown = desk.show(ahead.id, name) if ahead else desk.next(name)
            if shown is None:
                return
            with lock:
                if shown.id in held:
                    failures.append(shown)
                held.add(shown.id)
            ahead = desk.next(name, shown=False, besides=shown.id)
            with lock:
                held.discard(shown.id)
            desk.answer(shown.id, name, rng.choice(["left", "right"]))

    threads = [threading.Thread(target=work, args=(f"annotator {i}",)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert not failures and len(desk.votes()) == 120
    assert all(len(one.verdicts) == 1 for one in desk.take(RUN, range(120)))


def test_what_is_loaded_ahead_goes_to_one_who_has_none(desk):
    desk.offer(RUN, [question(1, 0.2), question(2, 0.1)])
    shown = desk.next("anna")
    ahead = desk.next("anna", shown=False, besides=shown.id)
    assert (shown.prompt, ahead.prompt) == ("prompt 1", "prompt 2")
    assert desk.next("cem", shown=False) is None  # both are somebody's
    assert desk.next("ben").id == ahead.id  # only loaded by anna
    assert desk.show(ahead.id, "anna").id == shown.id  # hers is gone: the one that she has not answered
    with pytest.raises(NotLeasedError, match="somebody else's"):
        desk.answer(ahead.id, "anna", "left")
    desk.answer(ahead.id, "ben", "left")
    assert desk.next("cem") is None


def test_a_page_that_is_loaded_again_shows_the_same_question_on_the_same_sides(desk):
    desk.offer(RUN, [question(i) for i in range(30)])
    for _ in range(10):
        shown = desk.next("anna")
        assert desk.next("anna") == desk.next("anna") == desk.show(shown.id, "anna") == shown
        desk.answer(shown.id, "anna", "left")


def test_a_verdict_is_written_once(desk):
    desk.offer(RUN, [question(1), question(2)])
    shown = desk.next("anna")
    assert desk.answer(shown.id, "anna", "left") == desk.answer(shown.id, "anna", "left")
    with pytest.raises(NotLeasedError, match="already"):
        desk.answer(shown.id, "anna", "right")
    for wrong in (shown.id + 1, 99):  # not handed out; not there
        with pytest.raises(NotLeasedError):
            desk.answer(wrong, "anna", "left")
    with pytest.raises(NotLeasedError):
        desk.answer(shown.id, "ben", "left")
    assert len(desk.votes()) == 1
    with pytest.raises(ValueError, match="'better'"):
        desk.answer(desk.next("anna").id, "anna", "better")


def test_a_verdict_can_be_taken_back_until_a_run_takes_it(tmp_path):
    with Desk(tmp_path) as desk, Questions(tmp_path, undo_s=1000.0) as patient, Questions(tmp_path) as run:
        desk.offer(RUN, [question(1), question(2)])
        verdict_of(desk, "anna", "first")
        assert patient.take(RUN, [1, 2]) == []  # within undo_s
        again = desk.undo("anna")
        assert again.prompt == "prompt 1" and desk.votes() == [] and run.take(RUN, [1]) == []
        assert desk.next("anna").id == again.id
        assert desk.answer(again.id, "anna", TIE) == TIE
        assert run.take(RUN, [1, 2]) == patient.take(RUN, [1, 2]) == [(1, (("anna", TIE),))]
        assert desk.undo("anna") is None and desk.undo("ben") is None
        with desk.reading() as db:  # what was taken back is kept
            assert db.execute("SELECT verdict, undone_at IS NULL FROM verdicts").fetchall() == [
                ("first", 0),
                (TIE, 1),
            ]


def test_skips_close_a_question_without_a_verdict(tmp_path):
    with Desk(tmp_path, skips=2) as desk:
        desk.offer(RUN, [question(1)])
        verdict_of(desk, "anna", SKIP)
        assert desk.next("anna") is None and desk.take(RUN, [1]) == []
        assert desk.undo("anna").prompt == "prompt 1"
        desk.answer(1, "anna", SKIP)
        verdict_of(desk, "ben", SKIP)
        assert desk.take(RUN, [1]) == [(1, ())] and desk.next("cem") is None


def test_several_people_answer_a_question(desk):
    desk.offer(RUN, [question(1, votes=3)])
    for name in ("anna", "ben", "cem"):
        assert desk.take(RUN, [1]) == []
        verdict_of(desk, name, "second")
    assert desk.next("dora") is None
    assert desk.take(RUN, [1]) == [(1, tuple((name, SECOND) for name in ("anna", "ben", "cem")))]


def test_no_more_people_get_a_question_than_it_needs(desk):
    desk.offer(RUN, [question(1, votes=2)])
    assert desk.next("anna").id == desk.next("ben").id
    assert desk.next("cem") is None


def test_a_lease_ends(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(desks.time, "time", lambda: clock[0])
    with Desk(tmp_path, lease_s=60.0) as desk:
        desk.offer(RUN, [question(1)])
        shown = desk.next("anna")
        clock[0] += 59
        assert desk.next("ben") is None
        clock[0] += 2
        assert desk.next("ben").id == shown.id
        with pytest.raises(NotLeasedError):
            desk.answer(shown.id, "anna", "left")
        desk.answer(shown.id, "ben", "left")


def test_an_offer_is_made_once_and_the_duel_of_a_deleted_journal_is_asked_no_more(desk):
    desk.offer(RUN, [question(1)])
    verdict_of(desk, "anna", "first")
    desk.offer(RUN, [question(1)])
    assert len(desk.take(RUN, [1])) == 1 and desk.next("ben") is None
    desk.offer(RUN, [question(1)._replace(prompt="prompt 9")])
    assert desk.take(RUN, [1]) == [] and verdict_of(desk, "ben", "second") == 9
    assert desk.take(RUN, [1]) == [(1, (("ben", SECOND),))]
    desk.offer("other", [question(1)])
    assert desk.take("other", [1]) == [] and desk.counts().open == 1


def test_the_newest_run_is_the_one_that_is_shown(desk):
    assert desk.budget() is None
    desk.set_budget("passive-seed0", 10)
    desk.set_budget(RUN, 20)
    assert desk.budget() == (RUN, 20)


def test_many_open_a_new_file_at_once(tmp_path):
    for place in range(10):
        failures, barrier = [], threading.Barrier(4)

        def open_it(folder=tmp_path / str(place), failures=failures, barrier=barrier):
            barrier.wait()
            try:
                with Desk(folder) as desk:
                    desk.offer(RUN, [question(1)])
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join(30) for thread in threads]
        assert not failures


def test_files_that_are_none(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 500)
    with pytest.raises(InputError, match=rf"{FILE}: damaged"):
        Questions(tmp_path)
    (tmp_path / FILE).unlink()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("CREATE TABLE other (x)")
    with pytest.raises(InputError, match=rf"{FILE}: no file of questions"):
        Questions(tmp_path)
    (tmp_path / FILE).unlink()
    Questions(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(InputError, match="layout 99"):
        Questions(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Questions(tmp_path / "file")
