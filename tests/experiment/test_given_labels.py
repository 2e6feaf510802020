"""Labels that exist already: runs use them before they buy any, and can learn from nothing else."""

import sqlite3
import types

import jax
import numpy as np
import pytest
from small_experiment import files, journal_file, labels_of, start

from sea_jax import train
from sea_jax.errors import InputError
from sea_jax.experiment import given_labels
from sea_jax.labels import imports, journal, reading
from sea_jax.oracles import labeller


@pytest.fixture
def asked(monkeypatch):
    """The prompts of the duels that any oracle was asked for a label."""
    found, compare = [], labeller.protocol.compare
    note = lambda oracle, *texts, **more: found.extend(texts[0]) or compare(oracle, *texts, **more)  # noqa: E731
    monkeypatch.setattr(
        labeller,
        "protocol",
        types.SimpleNamespace(compare=note, QuestionKeeper=labeller.protocol.QuestionKeeper),
    )  # not the evaluation's
    return found


def test_a_run_on_the_labels_of_another_equals_it_bit_by_bit(tmp_path, no_policy, asked):
    """Passive DPO: the same prompts, responses and labels in the same order make the same updates."""
    start(tmp_path / "a", "passive")()
    labels = asked.copy()
    asked.clear()
    given_labels.import_into(tmp_path / "b", tmp_path / "a")
    start(tmp_path / "b", "passive", only_given=True)()
    assert len(labels) == 16 and not asked
    jax.tree.map(np.testing.assert_array_equal, no_policy["a"], no_policy["b"])
    mine, theirs = (files(tmp_path / name, "passive")[3] for name in "ba")
    assert [row[3:] for row in mine] == [row[3:] for row in theirs]
    assert not reading.faults(journal_file(tmp_path / "b", "passive"))


@pytest.mark.parametrize("method, staleness", [("sea", 1), ("xpo", 0), ("posterior_rl", 0)])
def test_other_methods_learn_from_them(tmp_path, no_policy, asked, method, staleness):
    """Ten labels of one run, in batches of 4, 4 and 2; then the run buys the rest of its budget."""
    start(tmp_path / "a", "passive", **{"train.query_budget": 10})()
    given_labels.import_into(tmp_path / "b", tmp_path / "a")
    asked.clear()
    start(tmp_path / "b", method, **{"train.staleness": staleness})()
    rows = labels_of(tmp_path / "b", method)
    first = [row for row in rows if row[2] == journal.ELSEWHERE]
    assert [row[:2] for row in first] == [(i // 4, i % 4) for i in range(10)]
    bought = [row for row in rows if row[2] != journal.ELSEWHERE and row[8] == journal.ANSWERED]
    assert len(bought) == len(asked) == 6 and min(row[0] for row in bought) == 3
    metrics, *_ = files(tmp_path / "b", method)
    assert metrics[-1]["queries"] == 16
    steps = [row for row in metrics if "step/finite" in row]
    assert [row["duel/void"] for row in steps[:3]] == [0.0, 0.0, 0.5]
    assert not reading.faults(journal_file(tmp_path / "b", method))


def test_labels_that_are_imported_later_are_used_next(tmp_path, no_policy, asked):
    """A run of 8 labels is extended to 16, with 3 imported ones of which one is too long."""
    start(tmp_path, "passive", **{"train.query_budget": 8})()
    (prompt, *_), *_ = [row[3:6] for row in labels_of(tmp_path, "passive")]
    with imports.open_imported(tmp_path) as found:
        texts = ["a", "b", "many words " * 20]
        imports.add(found, [imports.Label(prompt, text, "c", True, 1.0, "people") for text in texts])
    asked.clear()
    start(tmp_path, "passive")()
    rows = [row for row in labels_of(tmp_path, "passive") if row[2] == journal.ELSEWHERE]
    assert [row[0] for row in rows] == [2, 2, journal.ELSEWHERE]
    assert len(asked) == 6
    (summary,) = map(reading.summary, [journal_file(tmp_path, "passive")])
    assert (summary.labels, summary.imported) == (17, 3)
    assert not reading.faults(journal_file(tmp_path, "passive"))


def test_a_label_of_other_tokens_than_the_task_reads_is_tokenised_anew(tmp_path, no_policy):
    """Token ids of another tokenizer: the text counts."""
    start(tmp_path / "a", "passive", **{"train.query_budget": 4})()
    with sqlite3.connect(journal_file(tmp_path / "a", "passive")) as db:
        db.execute("UPDATE duels SET first = 'a', second = 'b', second_tokens = x'ffffff7f', checksum = NULL")
    given_labels.import_into(tmp_path / "b", tmp_path / "a")
    start(tmp_path / "b", "passive", only_given=True)()
    (sample, *_) = files(tmp_path / "b", "passive")[1]
    assert {sample["chosen"], sample["rejected"]} == {"a", "b"}


def test_nothing_to_learn_from_is_one_line(tmp_path, no_policy):
    empty = tmp_path / "labels.jsonl"
    empty.touch()
    with pytest.raises(InputError, match=r"labels\.jsonl has no label"):
        given_labels.import_into(tmp_path, empty)
    with imports.open_imported(tmp_path) as found:
        imports.add(found, [imports.Label("p", "many words " * 20, "c", True, 1.0, "people")])
    with pytest.raises(InputError, match="--labels: none of them fits the task"):
        start(tmp_path, "passive", only_given=True)()


def test_nobody_is_asked_in_place_of_a_given_label_that_is_void(tmp_path, no_policy, monkeypatch):
    """As of two texts that this tokenizer reads as one: the run ends early, without a label of its oracle."""
    start(tmp_path / "a", "passive", **{"train.query_budget": 4})()
    given_labels.import_into(tmp_path / "b", tmp_path / "a")
    read = train.read_duels

    def void_where_given(run, candidates, duel):
        duel, texts = read(run, candidates, duel)
        given = run.actor.last.prompts.given
        return duel._replace(void=duel.void | given, query_oracle=duel.query_oracle & (not given)), texts

    monkeypatch.setattr(train, "read_duels", void_where_given)
    start(tmp_path / "b", "passive", only_given=True, **{"train.max_idle_steps": 2})()
    metrics, *_ = files(tmp_path / "b", "passive")
    assert metrics[-1]["queries"] == 0 and metrics[-1]["step"] == 2


def test_a_service_is_not_asked_where_a_run_only_learns_from_labels():
    config = lambda kind: types.SimpleNamespace(oracle=types.SimpleNamespace(kind=kind))  # noqa: E731
    assert given_labels.without_oracle(config("reward_model")).oracle.kind == "reward_model"
