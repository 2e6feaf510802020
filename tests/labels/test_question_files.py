"""Questions in files of labelling tools, and the answers that come back: nothing is lost, doubled or guessed."""

import csv
import io
import json
import sqlite3
import sys

import pytest

from sea_jax.labels import __main__ as labels
from sea_jax.labels import question_files as files
from sea_jax.labels.desk import Desk, Verdict
from sea_jax.labels.question_tables import FILE
from sea_jax.labels.questions import COLUMNS, Question

RUN = "sea-seed0"
TEXTS = [
    "plain",
    'with "quotes", commas\nand lines',
    "ünïcode \N{SNOWMAN} \u2028 \x07",
    "=cmd()",
    " spaces ",
    "\\n",
]


@pytest.fixture
def folder(tmp_path):
    with Desk(tmp_path) as desk:
        duels = [
            Question(i, f"{text} {i}", f"{text} first", f"{text} second", 0, i / 10)
            for i, text in enumerate(TEXTS)
        ]
        desk.offer(RUN, duels)
    return tmp_path


def command(monkeypatch, *arguments):
    """Runs the command; returns its exit status, 0 or 1 for an error that ends it."""
    monkeypatch.setattr(sys, "argv", ["labels", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        labels.main()
    return end.value.code


def taken(folder):
    with Desk(folder) as desk:
        return {one.duel: one.verdicts for one in desk.take(RUN, range(len(TEXTS)))}


def answer(file, form, choices, name="anna"):
    """Answers the questions of an exported file as somebody in its tool would, in the order of the file."""
    text = file.read_text("utf-8")
    if form in ("argilla", "label-studio"):
        rows = json.loads(text)
        for row, choice in zip(rows, choices, strict=True):
            if form == "argilla":
                row |= dict(responses={"choice": [{"value": choice, "user_id": name}]}, status="completed")
            else:
                row |= dict(
                    id=1,
                    annotations=[
                        dict(
                            completed_by={"email": name},
                            was_cancelled=False,
                            result=[
                                dict(
                                    from_name="choice",
                                    to_name="prompt",
                                    type="choices",
                                    value={"choices": [choice]},
                                )
                            ],
                        )
                    ],
                )
        file.write_text(json.dumps(rows), "utf-8")
        return
    if form == "jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line]
    else:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    rows = [row | dict(choice=choice, annotator=name) for row, choice in zip(rows, choices, strict=True)]
    with open(file, "w", encoding="utf-8", newline="") as output:
        if form == "jsonl":
            output.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(output, files.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def suffix(form):
    return form if form in ("csv", "jsonl") else "json"


@pytest.mark.parametrize("form", files.FORMATS)
def test_a_round_trip_loses_and_doubles_nothing(folder, form, monkeypatch, capsys):
    file = folder / f"questions.{suffix(form)}"
    assert command(monkeypatch, "export", folder, "--open", "--format", form, "--output", file) == 0
    assert command(monkeypatch, "import", folder, file) == 0  # nothing is answered yet
    assert taken(folder) == {}
    choices = ["1", "2", "tie", "both_bad", "skip", "1"]
    answer(file, form, choices)
    assert command(monkeypatch, "import", folder, file) == 0
    assert "6 answers, 0 were there already; 0 questions are open" in capsys.readouterr().out
    # The least certain question was exported first. Sides follow from its id.
    expected = {}
    for duel, choice in zip(range(5, -1, -1), choices, strict=True):
        if choice in ("1", "2"):
            first_is_1 = files._first_is_1(duel + 1)
            choice = "first" if (choice == "1") == first_is_1 else "second"
        expected[duel] = () if choice == "skip" else (("anna", choice),)
    assert taken(folder) == expected
    assert command(monkeypatch, "import", folder, file) == 0  # again
    assert "0 answers, 6 were there already" in capsys.readouterr().out
    assert command(monkeypatch, "export", folder, "--open", "--format", form) == 0
    assert "plain" not in capsys.readouterr().out


def test_every_answer_and_the_agreement_are_exported(folder, monkeypatch, capsys):
    """Of six questions anna answers all and takes one back; ben answers the first three of hers alike but one."""
    with Desk(folder) as desk:
        desk.offer("shared", [Question(i, f"x{i}", "a", "b", -1, votes=2) for i in range(3)])
        for name, choices in (("anna", "aab"), ("ben", "abb")):
            for choice in choices:
                shown = desk.next(name)
                desk.answer(shown.id, name, "left" if shown.left == choice else "right", 2.0)
        desk.undo("ben")
        desk.answer(desk.next("ben").id, "ben", "skip")
    command(monkeypatch, "agreement", folder)
    # Both on two questions: Po = 1/2, Pe = 1 · 1/2. α: 1 − 1 / (4·4 − 3·3 − 1·1) · 3 ordered unlike pairs of 4 values.
    assert capsys.readouterr().out.splitlines() == [
        "5 answers to 3 questions by 2 annotators",
        "Krippendorff's alpha: 0.000, of 2 questions with several answers",
        "Cohen's kappa of anna and ben: 0.000, of 2 questions",
    ]
    assert command(monkeypatch, "export", folder, "--verdicts", "--output", folder / "v.csv") == 0
    command(monkeypatch, "export", folder, "--verdicts")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with open(folder / "v.csv", newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [row["verdict"] for row in rows]
    assert [(row["annotator"], row["verdict"], row["undone_at"] is None) for row in rows] == [
        ("anna", "first", True), ("anna", "first", True), ("anna", "second", True), ("ben", "first", True),
        ("ben", "second", True), ("ben", "second", False), ("ben", "skip", True),
    ]  # fmt: skip
    assert {row["seconds"] for row in rows[:6]} == {2.0} and {*rows[0]} == {*COLUMNS}


def test_neither_response_is_favoured():
    assert 450 < sum(map(files._first_is_1, range(1, 1001))) < 550


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(question="99"), "line 3: question='99': was not asked"),
        (dict(question="x"), "line 3: question='x': was not asked"),
        (dict(prompt="another"), "line 3: question 5: its texts are not those"),
        (dict(answer_1="another"), "line 3: question 5: its texts are not those"),
        (dict(choice="first"), "line 3: choice='first'; valid: one of 1, 2, tie"),
        (dict(choice="2"), "line 3: question 5: answered twice by anna"),
        (dict(annotator="ben"), "line 3: question 5: closed already"),
    ],
)
def test_an_answer_that_is_none_is_an_error_that_names_the_row_and_nothing_is_written(
    folder, change, said, monkeypatch, capsys
):
    file = folder / "questions.jsonl"
    command(monkeypatch, "export", folder, "--open", "--output", file)
    answer(file, "jsonl", "111111")
    lines = file.read_text("utf-8").split("\n")[:-1]
    row = json.loads(lines[1])
    before = [lines[1]] if "choice" in change or "annotator" in change else []
    if change.get("choice") == "first":
        before = []
    file.write_text("\n".join([lines[0], *before, json.dumps(row | change), *lines[2:]]) + "\n")
    said = said if before else said.replace("line 3", "line 2")
    capsys.readouterr()
    assert command(monkeypatch, "import", folder, file) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert taken(folder) == {}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{}", "valid: a list"),
        ("a.json", "[{}]", "entry 1: no Label Studio's task"),
        ("a.json", '[{"fields": {}}]', "entry 1: no Argilla's record"),
        ("a.json", '[{"data": {"prompt": 1, "answer_1": 1, "answer_2": 1}, "annotations": [{}]}]', "entry 1"),
        ("a.json", "[", "a.json: "),
        ("a.json", "[" * 100_000, "a.json: "),
        ("a.jsonl", '{"question": 1', "line 1"),
        ("a.jsonl", "1", "line 1"),
        ("a.csv", 'question,prompt\n1,"x', "a.csv: "),
        ("a.csv", b"question,\xff\n1,2\n", "a.csv: "),
    ],
)
def test_files_that_are_none(folder, name, content, said, monkeypatch, capsys):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert command(monkeypatch, "import", folder, file) == 2
    error = capsys.readouterr().err
    assert said in error and name in error and error.count("\n") == 1
    assert taken(folder) == {}


def test_answers_in_a_folder_without_questions(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text(
        '{"question": 1, "prompt": "x", "answer_1": "a", "answer_2": "b", "choice": "1"}\n'
    )
    assert command(monkeypatch, "import", tmp_path / "runs", tmp_path / "a.jsonl") == 2
    assert f"holds no {FILE}" in capsys.readouterr().err
    assert command(monkeypatch, "export", tmp_path, "--open") == 2
    assert command(monkeypatch, "export", tmp_path, "--format", "csv") == 2
    assert "--format: valid with --open" in capsys.readouterr().err


def test_a_file_without_questions_is_left_to_labels_and_not_read_on(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text('{"prompt": "x", "first": "a", "second": "b", "chosen": "first"}\n{broken\n')
    assert files.read(file) is None  # the second line is nobody's yet
    file.write_text("")
    assert files.read(file) is None


def test_an_imported_answer_leaves_the_question_with_others_who_see_it(folder):
    """Of two that it needs, one comes from a file while another annotator has it on the page."""
    with Desk(folder) as desk:
        desk.offer("shared", [Question(9, "x", "a", "b", -1, votes=2)])
        shown = desk.next("anna")
        assert desk.add([Verdict(shown.id, "ben", "first", True, "a.csv, line 2")]) == (1, 0)
        desk.answer(shown.id, "anna", "left")
        assert len(desk.take("shared", [9])[0].verdicts) == 2


def test_answers_may_be_imported_while_the_run_waits(folder, monkeypatch):
    from sea_jax.runtime.owner import own

    file = folder / "questions.csv"
    with own(folder):
        assert command(monkeypatch, "export", folder, "--open", "--format=csv", "--output", file) == 0
        answer(file, "csv", "111111")
        assert command(monkeypatch, "import", folder, file) == 0
    with sqlite3.connect(folder / FILE) as db:
        assert db.execute("SELECT count(*) FROM votes").fetchone() == (6,)
