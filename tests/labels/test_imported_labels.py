"""Labels that exist already: read from files and journals, kept once, and refused where they are none."""

import json
import sqlite3

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sea_jax.errors import InputError
from sea_jax.labels import __main__ as command
from sea_jax.labels import imports, journal
from sea_jax.labels.journal import Answer, Journal, Question

IDS = np.array([5, 6], np.int32), np.array([7], np.int32)
DUELS = [("a?", "yes", "no", True), ("b „c“?", "x", "y\n🙂", False)]


def bought(folder):
    """A journal with both duels, answered by somebody."""
    with Journal(folder, "somebody") as found:
        questions = [Question(row, *duel[:3], *IDS) for row, duel in enumerate(DUELS)]
        entries = found.ask(0, 0, questions, b"")
        answers = [
            Answer(entry.id, True, 0.9 if duel[3] else 0.2, duel[3])
            for entry, duel in zip(entries, DUELS, strict=True)
        ]
        found.answer(answers, 1.5, cost=0.02)


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["labels", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


def held(workdir):
    with sqlite3.connect(workdir / imports.FILE) as db:
        return db.execute("SELECT prompt, first, second, prefers_first FROM duels ORDER BY id").fetchall()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", "a folder"])
def test_what_export_wrote_is_imported_once(tmp_path, monkeypatch, capsys, suffix):
    """Twice the same source adds nothing; texts, token ids, probability, cost, who and when come through."""
    run, source = tmp_path / "a/runs/sea-seed0", tmp_path / f"labels{suffix}"
    bought(run)
    if suffix == "a folder":
        source = tmp_path / "a"
    else:
        assert call(monkeypatch, "export", tmp_path / "a", "--output", source) == 0
    for added, known in ((2, 0), (0, 2)):
        assert call(monkeypatch, "import", tmp_path / "b", source) == 0
        assert f"{added} labels imported, {known} were there already" in capsys.readouterr().out
    mine, theirs = imports.read(tmp_path / "a"), imports.stored(tmp_path / "b")
    assert [*mine] == [*theirs]
    assert [tuple(row) for row in held(tmp_path / "b")] == DUELS
    label = next(imports.stored(tmp_path / "b"))
    assert (label.first_tokens, label.second_tokens) == ([5, 6], [7])
    assert (label.probability, label.cost, label.labelled_by) == (0.9, 0.01, "somebody")


def test_a_run_that_bought_a_label_does_not_import_it(tmp_path):
    bought(tmp_path)
    with Journal(tmp_path, "somebody") as found:
        assert imports.add(found, imports.read(tmp_path)) == (0, 2)


def test_a_bought_label_on_two_equal_texts_is_left_out(tmp_path):
    """Runs bought such labels before they compared texts; in a file of the user it is a mistake."""
    bought(tmp_path)
    with Journal(tmp_path, "somebody") as found:
        entries = found.ask(1, 0, [Question(0, "c?", "same", "same", *IDS)], b"")
        found.answer([Answer(entries[0].id, True, 0.9, True)], 1.0)
    assert [label.prompt for label in imports.read(tmp_path)] == [duel[0] for duel in DUELS]


def test_a_response_may_be_the_word_none(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("prompt,chosen,rejected\nHow many?,None,Some\n")
    (label,) = imports.read(file)
    assert label[:4] == ("How many?", "None", "Some", True)


def test_a_question_that_people_answered_several_times_stays_so(tmp_path):
    votes = tmp_path / "votes.jsonl"
    rows = [dict(prompt="p", first="a", second="b", chosen=chosen) for chosen in ("first", "first", "second")]
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with imports.open_imported(tmp_path / "b") as found:
        assert imports.add(found, imports.read(votes)) == (3, 0)
        assert imports.add(found, imports.read(votes)) == (0, 3)


def test_a_preference_set_is_imported(tmp_path):
    """Its chosen response is the first; probability 1."""
    parquet.write_table(
        pyarrow.table(dict(prompt=["p"], chosen=["good"], rejected=["bad"])), tmp_path / "train.parquet"
    )
    (label,) = imports.read(tmp_path / "train.parquet")
    assert label[:5] == ("p", "good", "bad", True, 1.0)
    assert label.labelled_by == "file train.parquet"


def test_steps_get_imported_labels_after_everything_that_was_written(tmp_path):
    """B = 2; step 0 was labelled and the responses of step 3 are kept: the next free step is 4."""
    bought(tmp_path)
    with Journal(tmp_path, "somebody") as found:
        found.keep_proposal(3, b"S_3")
        rows = [imports.Label("p", f"{i}", "b", True, 1.0, "x") for i in range(3)]
        assert imports.add(found, rows) == (3, 0)
        duels = imports.duels(found, 0)
        imports.place(found, [duel.id for duel in duels], 1, 2)
        placed = [(duel.step, duel.row, duel.first) for duel in imports.duels(found, 0)]
        assert placed == [(4, 0, "0"), (4, 1, "1"), (5, 0, "2")]
        assert imports.duels(found, 5) == imports.duels(found, 0)[2:]
        # Its answer is found by step and row, also where its tokens decode to another text.
        entries = found.ask(4, 4, [Question(1, "p", "another", "text", *IDS)], b"")
    assert (entries[0].state, entries[0].prefers_first) == (journal.ANSWERED, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: "),
        ("[]", "line 1: "),
        (
            '{"prompt": "p"}',
            ", line 1: columns ['prompt']; valid: ('prompt', 'first', 'second') and 'chosen'",
        ),
        ('{"prompt": "p", "first": "a", "second": "b"}', ", line 1: chosen=None; valid: 'first' or 'second'"),
        (
            '{"prompt": "p", "first": "a", "second": "b", "probability": 0.5}',
            ", line 1: chosen=None; valid: 'first' or 'second', or a probability that is not 0.5",
        ),
        ('{"prompt": "p", "first": "a", "second": "b", "chosen": "a"}', ", line 1: chosen='a'"),
        (
            '{"prompt": "p", "first": "a", "second": "b", "probability": 1.5}',
            ", line 1: probability=1.5; valid: a number from 0 to 1",
        ),
        (
            '{"prompt": "p", "first": "a", "second": "b", "probability": NaN}',
            ", line 1: probability=nan; valid: a number from 0 to 1",
        ),
        (
            '{"prompt": "p", "first": "a", "second": "a", "chosen": "first"}',
            ", line 1: two equal responses, 'a'",
        ),
        ('{"prompt": "p", "first": 3, "second": "a", "chosen": "first"}', ", line 1: first=3; valid: a text"),
        ('{"prompt": "p", "chosen": "a", "rejected": ["b"]}', ", line 1: second=['b']; valid: a text"),
        (
            '{"prompt": "p", "first": "a", "second": "b", "chosen": "first", "first_tokens": [-1]}',
            ", line 1: first_tokens=[-1]; valid: a list of token ids",
        ),
        (
            '{"prompt": "p", "first": "a", "second": "b", "chosen": "first", "answered_at": "soon"}',
            ", line 1: answered_at='soon'; valid: a time",
        ),
        (
            '{"prompt": "p", "first": "a", "second": "b", "chosen": "first", "cost": -1}',
            ", line 1: cost=-1; valid: a number, at least 0",
        ),
    ],
)
def test_a_row_that_is_no_label_is_one_line_and_nothing_is_imported(tmp_path, line, said):
    file = tmp_path / "labels.jsonl"
    file.write_text(line + "\n")
    with imports.open_imported(tmp_path / "b") as found, pytest.raises(InputError) as error:
        imports.add(found, imports.read(file))
    assert said in str(error.value)
    assert str(file) in str(error.value)
    assert not held(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.txt", "", "of a kind that cannot be read; valid: ['.jsonl', '.csv', '.parquet']"),
        ("labels.parquet", "x", "not a whole parquet file"),
        ("labels.csv", 'prompt,first\n"', "no csv"),
        ("labels.csv", b"\xff", "no csv"),
        ("absent.jsonl", None, "no such file or folder"),
        ("folder", None, "no such file or folder"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert call(monkeypatch, "import", tmp_path / "b", tmp_path / name) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_a_single_run_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.jsonl").touch()
    assert call(monkeypatch, "import", tmp_path, tmp_path) == 2
    assert "the folder of a single run; valid: a work directory" in capsys.readouterr().err
