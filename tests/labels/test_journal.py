"""The label journal: what is written, when, and what is done about damage."""

import csv
import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, truncate
from pyarrow import parquet

from sea_jax.errors import InputError, StorageError
from sea_jax.labels import __main__ as command
from sea_jax.labels import journal as journals
from sea_jax.labels import reading
from sea_jax.labels.journal import ANSWERED, ASKED, UNANSWERED, Answer, Journal, Question
from sea_jax.oracles.labeller import Labeller, Origin
from sea_jax.runtime.run_folder import Summary, write_summary

TOKENS = np.array([[[1, 2, 0], [3, 0, 0]], [[4, 5, 6], [7, 8, 0]]], np.int32)
MASK = TOKENS > 0
TEXTS = ["a?", "b ≻ „c“?"], ["yes", "no 🙂"], ["no", "yes\u0000\n"]
ORIGIN = Origin(step=3, policy_step=2, rows=np.array([1, 4]), tokens=TOKENS, mask=MASK, proposal=b"S_t")


class Counting:
    """An oracle that notes what it is asked, and fails where it is told to."""

    def __init__(self, answer=(0.9, 0.2), answered=(True, True)):
        self.answer, self.answered, self.asked, self.error = np.array(answer), np.array(answered), [], None

    def answers(self, prompts, first, second):
        self.asked += zip(prompts, first, second, strict=True)
        if self.error:
            raise self.error
        rows = [TEXTS[0].index(prompt) for prompt in prompts]
        return self.answer[rows], self.answered[rows]


def rows(folder, columns="*"):
    with sqlite3.connect(folder / journals.FILE) as db:
        return db.execute(f"SELECT {columns} FROM duels ORDER BY id").fetchall()


def test_a_duel_is_on_the_disk_before_it_is_asked_and_its_answer_before_it_is_returned(tmp_path):
    """Read by another connection at both moments."""
    seen = []

    class Watching(Counting):
        def answers(self, *texts):
            seen.append(rows(tmp_path, "step, row, policy_step, prompt, first, second, state, times_asked"))
            return super().answers(*texts)

    with Journal(tmp_path, "somebody") as journal:
        labels = Labeller(Watching(), journal=journal).label(*TEXTS, 0, ORIGIN)
        assert labels.prefers_first.tolist() == [True, False]
        stored = rows(tmp_path, "state, probability, prefers_first, labelled_by, first_tokens, second_tokens")
    asked = [(3, row, 2, *words, ASKED, 1) for row, *words in zip((1, 4), *TEXTS, strict=True)]
    assert seen == [asked]
    tokens = [
        tuple(np.array(ids, "<i4").tobytes() for ids in pair) for pair in (([1, 2], [3]), ([4, 5, 6], [7, 8]))
    ]
    assert stored == [
        (ANSWERED, 0.9, 1, "somebody", *tokens[0]), (ANSWERED, 0.2, 0, "somebody", *tokens[1])
    ]  # fmt: skip


def test_what_was_answered_is_not_asked_again_and_what_was_not_is_asked_once_more(tmp_path):
    oracle = Counting()
    oracle.error = MemoryError()
    with Journal(tmp_path, "o") as journal, pytest.raises(MemoryError):
        Labeller(oracle, journal=journal).label(*TEXTS, 0, ORIGIN)
    oracle.error, oracle.asked = None, []
    for times in (1, 2):  # a process each
        with Journal(tmp_path, "o") as journal:
            labeller = Labeller(oracle, journal=journal)
            labels = labeller.label(*TEXTS, 0, ORIGIN)
            assert labels.prefers_first.tolist() == [True, False] and labeller.num_queries == 2
            assert journal.count() == 2 and journal.proposals(3) == {3: b"S_t"} and not journal.proposals(4)
        assert len(oracle.asked) == 2, times
    assert rows(tmp_path, "times_asked, state") == [(2, ANSWERED)] * 2


def test_only_the_open_ones_of_a_batch_are_asked(tmp_path):
    """One duel of an earlier call beside a new one; other texts at the same place are another duel."""
    oracle = Counting()
    first, both = ORIGIN._replace(rows=np.array([1]), tokens=TOKENS[:1], mask=MASK[:1]), ORIGIN
    with Journal(tmp_path, "o") as journal:
        labeller = Labeller(oracle, journal=journal)
        labeller.label(*([words[0]] for words in TEXTS), 0, first)
        oracle.answer = np.array([0.1, 0.7])  # would change its mind
        labels = labeller.label(*TEXTS, 0, both)
        assert labels.prefers_first.tolist() == [True, True] and len(oracle.asked) == 2
        labeller.label(["a?"], ["yes"], ["never"], 0, first)
        assert len(oracle.asked) == 3 and journal.count() == 3


def test_an_unanswered_duel_stays_unanswered(tmp_path):
    oracle = Counting((0.9, np.nan), (True, False))
    for _ in range(2):
        with Journal(tmp_path, "o") as journal:
            labeller = Labeller(oracle, journal=journal)
            labels = labeller.label(*TEXTS, 0, ORIGIN)
        assert labels.answered.tolist() == [True, False] and not labels.prefers_first[1]
        assert (labeller.num_queries, labeller.num_dropped, len(oracle.asked)) == (1, 1, 2)
    assert rows(tmp_path, "state, probability, prefers_first") == [
        (ANSWERED, 0.9, 1),
        (UNANSWERED, None, None),
    ]


def test_a_stored_label_stays_and_the_draw_of_another_does_not_depend_on_it(tmp_path):
    """Flips and Bernoulli draws belong to the place in the batch."""
    origin = ORIGIN._replace(rows=np.arange(2))
    for seed in range(20):
        plain = Labeller(Counting((0.5, 0.5)), "bernoulli", 0.3).label(*TEXTS, seed)
        folder = tmp_path / str(seed)
        with Journal(folder, "o") as journal:
            entries = journal.ask(3, 2, [Question(1, *(words[1] for words in TEXTS), *TOKENS[1])], b"")
            journal.answer([Answer(entries[0].id, True, 0.5, False)], 0.0)
            found = Labeller(Counting((0.5, 0.5)), "bernoulli", 0.3, journal=journal).label(
                *TEXTS, seed, origin
            )
        assert found.prefers_first.tolist() == [plain.prefers_first[0], False]


def test_the_cost_of_a_batch_is_shared(tmp_path):
    oracle = Counting()
    spent = iter([1.0, 1.5])
    oracle.metrics = lambda: {"oracle/cost_usd": next(spent)}
    with Journal(tmp_path, "o") as journal:
        Labeller(oracle, journal=journal).label(*TEXTS, 0, ORIGIN)
    assert rows(tmp_path, "cost") == [(0.25,), (0.25,)]
    assert reading.summary(tmp_path / journals.FILE).cost == 0.5


@pytest.fixture
def bought(tmp_path):
    """The folder of a work directory with one finished run of two labels and one duel without an answer."""
    folder = tmp_path / "runs/sea-seed0"
    with Journal(folder, "o") as journal:
        labeller = Labeller(Counting(), journal=journal)
        labeller.label(*TEXTS, 0, ORIGIN)
        labeller._oracle.error = MemoryError()
        with pytest.raises(MemoryError):
            labeller.label(*TEXTS, 0, ORIGIN._replace(step=4))
    write_summary(folder, Summary(2, "sea", "SEA", True))
    return tmp_path


def run(*arguments):
    call = [sys.executable, "-m", "sea_jax.labels", *map(str, arguments)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_commands(bought, tmp_path):
    status, said, _ = run("list", bought)
    assert status == 0 and said.splitlines()[1].split()[:5] == ["sea-seed0", "2", "0", "0", "2"]
    status, said, _ = run("verify", bought / "runs/sea-seed0")
    assert (status, said) == (0, "1 journals, 2 labels, 0 faults\n")
    status, said, _ = run("export", bought)
    exported = [json.loads(line) for line in said.splitlines()]
    assert [row["chosen"] for row in exported] == ["first", "second"]
    assert [row["first_tokens"] for row in exported] == [[1, 2], [4, 5, 6]]
    assert [(row["prompt"], row["first"], row["second"]) for row in exported] == list(
        zip(*TEXTS, strict=True)
    )
    status, _, said = run("list", tmp_path / "nowhere")
    assert status == 2 and said == (
        f"error: {tmp_path / 'nowhere'}: holds no labels.sqlite; "
        "valid: a run's folder, or a --workdir of runs\n"
    )


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_exports_hold_the_same(bought, tmp_path, monkeypatch, ending):
    output = tmp_path / f"labels.{ending}"
    monkeypatch.setattr(sys, "argv", ["labels", "export", str(bought), "--output", str(output)])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    read = {
        "jsonl": lambda: [json.loads(line) for line in output.read_text().splitlines()],
        "csv": lambda: list(csv.DictReader(output.open(newline=""))),
        "parquet": lambda: parquet.read_table(output).to_pylist(),
    }
    table = read[ending]()
    assert [tuple(row) for row in table] == [reading.COLUMNS] * 2
    assert [[row[name] for row in table] for name in ("prompt", "first", "chosen")] == [
        TEXTS[0], TEXTS[1], ["first", "second"]
    ]  # fmt: skip
    assert [float(row["probability"]) for row in table] == [0.9, 0.2]


def test_verify_finds_damage(bought):
    file = bought / "runs/sea-seed0" / journals.FILE
    with sqlite3.connect(file) as db:
        db.execute("UPDATE duels SET prefers_first = NULL WHERE id = 1")
        db.execute("UPDATE duels SET first_tokens = second_tokens WHERE id = 2")
        db.execute(
            "UPDATE duels SET state = 'answered', prefers_first = 1, probability = 1, row = 4 WHERE id > 2"
        )
    found = "\n".join(reading.faults(file))
    for fault in ("1 duels have an answer without a label", "1 duels have two equal responses",
                  "1 places of a batch have two labels", "4 labels; its run counted 2"):  # fmt: skip
        assert fault in found


@pytest.mark.parametrize("spoil", ["text", "half", "other", "newer"])
def test_a_file_that_is_no_journal_is_one_line(tmp_path, bought, spoil):
    file = bought / "runs/sea-seed0" / journals.FILE
    if spoil == "text":
        file.write_text("labels " * 400)
    elif spoil == "half":
        truncate(file, 0.5)
    elif spoil == "other":
        file.unlink()
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE other (x)")
    else:
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 9")
    with pytest.raises((InputError, StorageError), match=r"labels\.sqlite") as error:
        with Journal(file.parent, "o") as journal:
            Labeller(Counting(), journal=journal).label(*TEXTS, 0, ORIGIN._replace(step=9))
        pytest.fail("a spoilt journal was accepted")
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Journal(tmp_path / "file", "o")


@pytest.mark.parametrize(
    "change",
    [
        "prefers_first = 1 - prefers_first",
        "probability = probability / 2",
        "first = first || ' '",
        "cost = 9",
    ],
)
def test_a_changed_row_is_found(bought, change):
    """Also where the row is as good as another: by its checksum."""
    file = bought / "runs/sea-seed0" / journals.FILE
    with sqlite3.connect(file) as db:
        db.execute(f"UPDATE duels SET {change} WHERE id = 1")
    assert [line for line in reading.faults(file) if "1 duels differ from their checksum" in line]
    for use in (
        lambda: Journal(file.parent, "o"),
        lambda: list(reading.labels(file)),
        lambda: reading.summary(file),
    ):
        with pytest.raises(
            InputError, match=r"labels\.sqlite: damaged \(1 duels differ from their checksum; python -m"
        ):
            use()


def test_a_changed_proposal_is_found(tmp_path):
    with Journal(tmp_path, "o") as journal:
        journal.keep_proposal(3, b"S_t")
    with sqlite3.connect(tmp_path / journals.FILE) as db:
        db.execute("UPDATE proposals SET content = x'00'")
    with pytest.raises(InputError, match="1 proposals differ from their checksum"):
        Journal(tmp_path, "o")


def test_a_journal_of_an_older_version_is_continued(tmp_path):
    """Its rows have no checksum; they get one when they are written again."""
    with Journal(tmp_path, "o") as journal:
        Labeller(Counting(), journal=journal).label(*TEXTS, 0, ORIGIN)
    with sqlite3.connect(tmp_path / journals.FILE) as db:
        for table in ("duels", "proposals"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
        db.execute("PRAGMA user_version = 1")
    assert (
        not reading.faults(tmp_path / journals.FILE) and len([*reading.labels(tmp_path / journals.FILE)]) == 2
    )
    oracle = Counting()
    with Journal(tmp_path, "o") as journal:
        Labeller(oracle, journal=journal).label(*TEXTS, 0, ORIGIN)
        Labeller(oracle, journal=journal).label(*TEXTS, 0, ORIGIN._replace(step=4))
        assert len(oracle.asked) == 2 and journal.count() == 4
    assert rows(tmp_path, "checksum IS NULL") == [(0,)] * 4 and not reading.faults(tmp_path / journals.FILE)
