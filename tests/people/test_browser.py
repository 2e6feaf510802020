"""The page in a real browser (Debian's Chromium): keys, undo, reload, two annotators, and a server that is killed.

Also makes the screenshots of docs/guides/people.md, if SCREENSHOTS names a folder.
"""

import os
import signal
import sqlite3

import pytest
from browsing import Visitor, browser
from services import free_port

from configs import quickstart
from sea_jax.labels.question_tables import FILE
from sea_jax.labels.questions import Question, Questions
from sea_jax.people import server

pytestmark = pytest.mark.browser
RUN = "sea-seed0"
KEYS = {"first": "1 2", "second": "2 1", "tie": "3 3", "both_bad": "4 4"}  # where the first is left; right


class Annotator(Visitor):
    """Somebody who labels: sees what is shown, and answers by keys."""

    def question(self, besides=""):
        """Waits for a question that is shown and is not `besides`; returns its id."""
        read = lambda: self.find("question").is_displayed() and self.find("question").get_attribute("data-id")  # noqa: E731
        return self.wait(lambda: (now := read()) and now != besides and now)

    def answer(self, verdict):
        """Answers what is shown by a key; returns the id of the question."""
        shown = self.question()
        left, right = KEYS[verdict].split()
        self.press(left if self.find("left").text.startswith("first") else right)
        return shown


@pytest.fixture
def page(tmp_path):
    config = quickstart.get_config()
    config.oracle.kind, config.people.port = "people", free_port()
    config.people.requests_per_s = 1000.0  # the keys are pressed faster than by people
    config.people.guideline = str(tmp_path / "guideline.txt")
    (tmp_path / "guideline.txt").write_text("Prefer the summary that names who did what. Ignore its length.")
    with server.page(config, tmp_path) as page:
        yield page


def offer(folder, size, **fields):
    with Questions(folder) as questions:
        questions.offer(RUN, [
            Question(i, f"post {i}\n<img src=x onerror=\"document.title='mine'\">", f"first {i}", f"second {i}", i, **fields)
            for i in range(size)
        ])  # fmt: skip
        questions.set_budget(RUN, 256)


def votes(folder):
    with sqlite3.connect(folder / FILE) as db:
        query = "SELECT duel, annotator, verdict FROM votes JOIN questions ON questions.id = question"
        return sorted(db.execute(query).fetchall())


def test_twenty_duels_by_keys_two_taken_back_and_a_reload_in_the_middle(page, tmp_path):
    """The file holds exactly the twenty verdicts, and the two that were taken back as such."""
    offer(tmp_path, 20)
    verdicts = [("first", "second", "tie", "both_bad")[i % 4] for i in range(20)]
    said = {}  # by question: which one follows a verdict that was taken back depends on time
    with browser(Annotator) as anna:
        anna.driver.get(page.address)
        anna.screenshot("people_login")
        anna.log_in(page.address, "anna")
        for number, verdict in enumerate(verdicts):
            if number in (5, 12):  # a wrong key, which is taken back
                wrong = anna.answer("tie" if verdict != "tie" else "first")
                anna.question(besides=wrong)
                anna.press("u")
                anna.wait(lambda wrong=wrong: anna.find("question").get_attribute("data-id") == wrong)
            if number == 9:
                before = anna.question()
                sides = anna.find("left").text
                anna.driver.refresh()
                assert anna.question() == before and anna.find("left").text == sides
            if number == 3:
                anna.wait(lambda: "3 answers of yours" in anna.find("progress").text)
                anna.screenshot("people_page")
            shown = anna.answer(verdict)
            said[int(shown)] = verdict
            if number < 19:
                anna.question(besides=shown)
        anna.wait(lambda: anna.find("waiting").is_displayed())
        anna.wait(lambda: len(votes(tmp_path)) == 20)
        assert anna.driver.title == "Which answer is better?"  # the prompt's script did not run
        messages = [line["message"] for line in anna.driver.get_log("browser")]
        assert not [line for line in messages if "409" not in line], messages
        anna.driver.get(f"{page.address}progress")
        anna.screenshot("people_progress")
    assert len(said) == 20
    with sqlite3.connect(tmp_path / FILE) as db:
        found = db.execute("SELECT question, annotator, verdict FROM votes ORDER BY question").fetchall()
        assert found == [(question, "anna", verdict) for question, verdict in sorted(said.items())]
        assert db.execute("SELECT count(*) FROM verdicts WHERE undone_at IS NOT NULL").fetchone() == (2,)
        assert db.execute("SELECT min(seconds) > 0 FROM verdicts").fetchone() == (1,)


def test_quick_keys_answer_one_question_each(page, tmp_path):
    offer(tmp_path, 12)
    with browser(Annotator) as anna:
        anna.log_in(page.address, "anna")
        anna.question()
        for _ in range(400):
            anna.press("1")
            if len(votes(tmp_path)) == 12:
                break
        anna.wait(lambda: len(votes(tmp_path)) == 12)
        assert [duel for duel, *_ in votes(tmp_path)] == [*range(12)]


def test_two_browsers_never_have_one_question_and_a_killed_server_loses_nothing(page, tmp_path):
    offer(tmp_path, 16)
    with browser(Annotator) as anna, browser(Annotator) as ben:
        anna.log_in(page.address, "anna")
        ben.log_in(page.address, "ben")
        for turn in range(8):
            shown = [one.question() for one in (anna, ben)]
            assert shown[0] != shown[1]
            if turn == 4:
                os.kill(page._process.pid, signal.SIGKILL)
                page._process.wait()
                anna.answer("first")  # while there is no server
                anna.wait(lambda: anna.find("message").is_displayed())
                page.watch()
                anna.wait(lambda: len(votes(tmp_path)) == 9)
            else:
                anna.answer("first")
            ben.answer("second")
            anna.wait(lambda turn=turn: len(votes(tmp_path)) == 2 * turn + 2)
            if turn < 7:
                [one.question(besides=before) for one, before in zip((anna, ben), shown, strict=True)]
    found = votes(tmp_path)
    assert [duel for duel, *_ in found] == [*range(16)]
    assert {(name, verdict) for _, name, verdict in found} == {("anna", "first"), ("ben", "second")}
