"""Pairs that users of a chat choose from: sides, owners, batches of steps, and what operators ask for."""

import random
import threading
import time

import pytest

from sea_jax.labels import chat
from sea_jax.labels.chat import ChatDuels, NotYoursError, Pair


@pytest.fixture
def duels(tmp_path):
    with ChatDuels(tmp_path) as duels:
        yield duels


def pair(number, version=0, reference=None):
    return Pair(
        f"prompt {number}",
        f"first {number}",
        f"second {number}",
        b"\1\0\0\0",
        b"\2\0\0\0",
        version,
        reference,
    )


def chosen(duels, number, verdict, user="anna", **fields):
    """Shows a pair and chooses; returns its id."""
    shown = duels.show(user, pair(number, **fields))
    side = verdict
    if verdict in ("first", "second"):
        side = "left" if shown.left.startswith(verdict) else "right"
    assert duels.choose(shown.duel, user, side) == verdict
    return shown.duel


def test_sides_are_drawn_and_read_back(duels):
    lefts = set()
    for number in range(40):
        shown = duels.show("anna", pair(number))
        assert {shown.left, shown.right} == {f"first {number}", f"second {number}"}
        lefts.add(shown.left.split()[0])
        wanted = random.choice(["first", "second"])
        assert (
            duels.choose(shown.duel, "anna", "left" if shown.left.startswith(wanted) else "right") == wanted
        )
    assert lefts == {"first", "second"}


def test_a_choice_is_written_once_and_by_whom_it_was_shown_to(duels):
    shown = duels.show("anna", pair(0))
    for user, duel in (("ben", shown.duel), ("anna", shown.duel + 1)):
        with pytest.raises(NotYoursError, match="no such pair"):
            duels.choose(duel, user, "left")
    said = duels.choose(shown.duel, "anna", "left")
    assert duels.choose(shown.duel, "anna", "left") == said
    with pytest.raises(NotYoursError, match="chosen already"):
        duels.choose(shown.duel, "anna", "tie")
    assert duels.totals() == (1, 1, 0, 0)


def test_a_choice_that_comes_too_late_is_refused(tmp_path):
    with ChatDuels(tmp_path, answer_s=0.05) as duels:
        shown, early = duels.show("anna", pair(0)), duels.show("anna", pair(1))
        duels.choose(early.duel, "anna", "left")
        time.sleep(0.1)
        with pytest.raises(NotYoursError, match="is over"):
            duels.choose(shown.duel, "anna", "left")
        duels.choose(early.duel, "anna", "left")  # the reply was lost, and it is sent again


def test_a_step_gets_the_oldest_choices_and_the_same_ones_again(duels):
    ids = [
        chosen(duels, i, verdict)
        for i, verdict in enumerate(["first", "tie", "second", "both_bad", "skip", "first"])
    ]
    duels.show("anna", pair(9))
    assert [one.id for one in duels.take(0, 2)] == [ids[0], ids[2]]
    assert duels.take(1, 2) == []  # a tie says nothing
    again = duels.take(0, 2)
    assert [(one.row, one.verdict, one.prompt) for one in again] == [
        (0, "first", "prompt 0"),
        (1, "second", "prompt 2"),
    ]
    assert [one.id for one in duels.take(1, 2, with_ties=True)] == [ids[1], ids[5]]
    assert duels.totals().learned == 4 and duels.of_step(2) == []


def test_the_online_win_rate_against_a_hand_count(duels):
    """The policy wins where it wrote what was chosen; a tie counts ½, and 'both bad' does not count."""
    for number, (reference, verdict) in enumerate(
        [
            (0, "second"),
            (0, "first"),
            (1, "first"),
            (1, "tie"),
            (1, "both_bad"),
            (None, "first"),
            (0, "second"),
        ]
    ):
        chosen(duels, number, verdict, reference=reference)
    assert duels.online() == (5, 3.5) and duels.online().rate == 0.7
    assert duels.online(2) == (2, 1.5)  # the last two: a tie and a win


def test_what_operators_ask_for_is_seen_by_other_processes(duels, tmp_path):
    assert not duels.paused()
    with ChatDuels(tmp_path) as other:
        other.set_paused(True)
        assert duels.paused()
        other.set_paused(False)
        other.ask_rollback(3)
        other.ask_rollback(1)
    assert not duels.paused()
    first, second = duels.rollbacks()
    assert (first.version, second.version) == (3, 1)
    duels.end_rollback(first, 7)
    duels.end_rollback(second, 7, "no checkpoint")
    assert duels.rollbacks() == [] and duels.rollbacks(7) == [first]
    assert duels.last_rollback() == (1, 7, "no checkpoint")


def test_many_users_at_once_lose_no_choice(tmp_path, duels):
    def work(user):
        with ChatDuels(tmp_path) as own:
            for number in range(20):
                chosen(own, number, "first", user)

    threads = [threading.Thread(target=work, args=(f"user {i}",)) for i in range(4)]
    [thread.start() for thread in threads]
    steps = 0
    while any(thread.is_alive() for thread in threads) or duels.totals().learned < 80:
        steps += bool(duels.take(steps, 4))
    taken = [one.id for step in range(steps) for one in duels.of_step(step)]
    assert len(taken) == len({*taken}) == 80 and steps == 20


def test_its_file_is_that_of_a_chat(tmp_path):
    from sea_jax.errors import InputError

    (tmp_path / chat.FILE).write_bytes(b"x" * 200)
    with pytest.raises(InputError, match=r"chat\.sqlite: damaged"):
        ChatDuels(tmp_path)
