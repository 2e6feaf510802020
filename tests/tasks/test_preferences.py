"""Preference sets from files: columns of text or of conversations, what is dropped, and the two splits."""

import random

import helpers
import pytest

from sea_jax.errors import InputError
from sea_jax.tasks import preferences
from sea_jax.tasks.preferences import Pair

ROWS = [dict(prompt=f"say {i}", chosen=f"{i} yes", rejected=f"{i} no", score=1.0) for i in range(12)]
# Five pairs of one prompt stay together.
ROWS += [dict(prompt="say it", chosen=f"it {i}", rejected="no") for i in range(5)]


def load(path, longest=40, **fields):
    """A character is a token."""
    length = lambda pairs: [len(x) + max(len(a), len(b)) for x, a, b in pairs]  # noqa: E731
    default = dict(name="local", path=str(path), num_heldout=4)
    return preferences.load(default | fields, length, longest)


def plain(rows):
    return {Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows}


@pytest.mark.parametrize("seed", range(4))
def test_splits_are_whole_and_share_no_prompt(tmp_path, seed):
    train, heldout = load(helpers.write_rows(tmp_path / "a", ROWS), split_seed=seed)
    assert len(heldout) == 4 and not {p.prompt for p in train} & {p.prompt for p in heldout}
    shared = sum(row["prompt"] in {p.prompt for p in heldout} for row in ROWS)
    assert len(train) == len(ROWS) - shared and {*train, *heldout} <= plain(ROWS)
    few, same = load(tmp_path / "a", split_seed=seed, num_train=3)
    assert few == train[:3] and same == heldout


def test_order_and_format_of_the_rows_do_not_matter(tmp_path):
    rows = list(ROWS)
    random.Random(1).shuffle(rows)
    first = load(helpers.write_rows(tmp_path / "a", ROWS))
    assert first == load(helpers.write_rows(tmp_path / "b", rows, "train-00000-of-00001.parquet"))
    assert first[1] != load(tmp_path / "a", split_seed=3)[1]


def user(text):
    return dict(role="user", content=text)


def assistant(text):
    return dict(role="assistant", content=text)


@pytest.mark.parametrize("form", ["whole", "answers", "no prompt column"])
@pytest.mark.parametrize("name", ["train_prefs.parquet", "train.jsonl"])
def test_conversations(tmp_path, form, name):
    """As UltraFeedback's sets have them: with the prompt's turn before the answer, or as the only prompt."""
    rows = [
        {k: [*([] if form == "answers" else [user(row["prompt"])]), assistant(row[k])]
         for k in ("chosen", "rejected")} | ({} if form == "no prompt column" else dict(prompt=row["prompt"]))
        for row in ROWS
    ]  # fmt: skip
    folder = helpers.write_rows(tmp_path / "chat", rows, name)
    assert load(folder, name="ultrafeedback") == load(helpers.write_rows(tmp_path / "text", ROWS))


def test_what_is_dropped(tmp_path):
    talk = [user("other"), assistant("x")]
    wrong = [
        ROWS[0], dict(prompt=" ", chosen="x", rejected="y"), dict(prompt="a", chosen="", rejected="y"),
        dict(prompt="a", chosen="x", rejected=None), dict(prompt="a", chosen="x ", rejected="x"),
        dict(prompt="a", chosen="x" * 40, rejected="y"), dict(prompt="a", chosen=talk, rejected="y"),
    ]  # fmt: skip
    train, heldout = load(helpers.write_rows(tmp_path / "a", ROWS + wrong), num_heldout=1, split_seed=1)
    assert {*train, *heldout} == plain(ROWS)
    with pytest.raises(InputError) as error:
        load(tmp_path / "a", num_train=20)
    said = str(error.value)
    for part in ("config.task.num_train=20: valid is at most 1", "1 without a prompt", "2 without a response",
                 "1 of equal responses", "1 repeated", "1 over 40 tokens", "1 that go on from another"):  # fmt: skip
        assert part in said, said


def test_a_test_split_is_held_out(tmp_path):
    """Its prompts are not trained on; those that are not taken are."""
    helpers.write_rows(tmp_path / "a", ROWS)
    helpers.write_rows(tmp_path / "a", [dict(ROWS[i], chosen="z") for i in range(3)], "test_prefs.jsonl")
    train, heldout = load(tmp_path / "a", num_heldout=2)
    assert {p.chosen for p in heldout} == {"z"}
    assert {p.prompt for p in train} == {row["prompt"] for row in ROWS} - {p.prompt for p in heldout}


def test_summaries_are_cleaned(tmp_path):
    rows = [dict(subreddit="dogs", title=f"t{i}", post="He ran.", chosen="ran <|endoftext|>", rejected=" no ")
            for i in range(6)]  # fmt: skip
    train, _ = load(helpers.write_rows(tmp_path / "a", rows), longest=90, name="tldr", num_train=0)
    assert train[0][1:] == (" ran", " no") and train[0].prompt.endswith("\n\nPOST: He ran.\n\nTL;DR:")


ABSENT = (
    "config.task.chosen_column='': valid is one of ['completion', 'prompt'], the columns of "
    "config.task.path='{path}', as it has no 'chosen'"
)


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([dict(prompt="a", completion="b")], {}, ABSENT),
        ([dict(prompt="a", chosen="b")], {}, "config.task.rejected_column='': valid is one of"),
        (ROWS, dict(chosen_column="won"), "config.task.chosen_column='won': valid is one of ['chosen',"),
        (ROWS, dict(prompt_column="query"), "config.task.prompt_column='query': valid is one of ['chosen',"),
        ([dict(prompt="a", chosen=3, rejected="b")], {}, "column 'chosen': holds 3; valid: texts"),
        ([dict(prompt="a", chosen="b", rejected="b")], {}, "leaves no pair (dropped: 1 of equal responses)"),
        (ROWS, dict(longest=5), "leaves no pair (dropped: 17 over 5 tokens)"),
        (ROWS, dict(num_heldout=18), "config.task.num_heldout=18: valid is at most 17"),
        (ROWS, dict(num_heldout=17), "config.task.num_train=0: config.task.path='{path}' leaves no pair"),
        (ROWS, dict(num_heldout=0), "config.task.num_heldout=0: valid is at least 1"),
        (ROWS, dict(chosen_column=3), "config.task.chosen_column=3: valid is a text"),
        ([dict(chosen="a", rejected="b")], {}, "leaves no pair (dropped: 1 without a prompt)"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_used(tmp_path, rows, fields, said):
    folder = helpers.write_rows(tmp_path / "a", rows)
    with pytest.raises(InputError) as error:
        load(folder, **fields)
    assert said.format(path=folder) in str(error.value) and "\n" not in str(error.value)
