"""Real prompts from files: which are taken, in which order, and what is said of files that cannot be read."""

import random

import helpers
import pytest
from real_text import byte_tokenizer, posts

from sea_jax.errors import InputError
from sea_jax.tasks import text
from sea_jax.tasks.stream import pool_rows, prompt_rows
from sea_jax.tasks.tokenizer import Tokenizer

ROWS = posts(30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer("ours", tmp_path_factory.getbasetemp(), byte_tokenizer(ROWS), 0, 0, 320, (), None, None)


def load(path, tokenizer, **fields):
    default = dict(name="tldr", path=str(path), num_train=0, num_tuning=5, num_heldout=6, prompt_length=64)
    return text.load(default | fields, tokenizer)


def test_splits_are_disjoint_whole_and_keep_their_references(tmp_path, tokenizer):
    task = load(helpers.write_rows(tmp_path / "a", ROWS), tokenizer)
    assert [len(task.prompts[split]) for split in ("train", "tuning", "heldout")] == [19, 5, 6]
    given = {row["prompt"]: row["completion"] for row in ROWS}
    pairs = [p for s in task.prompts for p in zip(task.prompts[s], task.references[s], strict=True)]
    assert dict(pairs) == given and len(pairs) == 30


def test_order_and_format_of_the_rows_do_not_matter(tmp_path, tokenizer):
    rows = list(ROWS)
    random.Random(1).shuffle(rows)
    first = load(helpers.write_rows(tmp_path / "a", ROWS), tokenizer)
    again = load(helpers.write_rows(tmp_path / "b", rows, "train-00000-of-00001.parquet"), tokenizer)
    assert first.prompts == again.prompts and first.references == again.references
    other = load(tmp_path / "a", tokenizer, split_seed=1)
    assert other.prompts["heldout"] != first.prompts["heldout"]


def test_what_is_dropped(tmp_path, tokenizer):
    """A repeated prompt, an empty one, one without reference, one too long: 30 of 34 stay."""
    wrong = [ROWS[0], dict(prompt=" ", completion="x"), dict(prompt="alone", completion=""),
             dict(prompt="long " * 90, completion="x")]  # fmt: skip
    task = load(helpers.write_rows(tmp_path / "a", ROWS + wrong), tokenizer)
    kept = {p for split in task.prompts.values() for p in split}
    assert kept == {row["prompt"] for row in ROWS}
    with pytest.raises(InputError) as error:
        load(tmp_path / "a", tokenizer, num_train=20)
    for said in ("config.task.num_train=20: valid is at most 19", "1 repeated", "1 without a prompt",
                 "1 without a reference", "1 over prompt_length=64 tokens"):  # fmt: skip
        assert said in str(error.value)


def test_a_test_split_is_held_out(tmp_path, tokenizer):
    """A prompt of both splits is not trained on."""
    folder = helpers.write_rows(tmp_path / "a", ROWS[:20])
    helpers.write_rows(folder, ROWS[19:], "test.jsonl")
    task = load(folder, tokenizer)
    assert set(task.prompts["heldout"]) <= {row["prompt"] for row in ROWS[19:]}
    trained = {*task.prompts["train"], *task.prompts["tuning"]}
    assert trained == {row["prompt"] for row in ROWS[:19]}


def test_columns_of_a_reddit_post_and_of_ultrafeedback(tmp_path, tokenizer):
    post = [
        dict(subreddit="dogs", title=f"t{i}", post="He ran.", summary=" ran <|endoftext|>") for i in range(13)
    ]
    task = load(helpers.write_rows(tmp_path / "a", post), tokenizer)
    prompt = task.prompts["train"][0]
    assert prompt.startswith("SUBREDDIT: r/dogs\n\nTITLE: t") and prompt.endswith(
        "\n\nPOST: He ran.\n\nTL;DR:"
    )
    assert set(task.references["train"]) == {" ran"}
    turns = lambda p: [dict(role="user", content=p), dict(role="assistant", content="hi")]  # noqa: E731
    rows = [dict(prompt=f"say {i}", chosen=turns(f"say {i}"), score=1.0) for i in range(12)]
    task = load(
        helpers.write_rows(tmp_path / "b", rows, "train_prefs.parquet"), tokenizer, name="ultrafeedback"
    )
    assert task.references == dict(train=(), tuning=(), heldout=())
    assert sum(len(x) for x in task.prompts.values()) == 12 and any(
        "say 3" in x for x in task.prompts.values()
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: (f / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": '),
            "train.jsonl, line 2: not JSON",
        ),
        (lambda f: (f / "train.jsonl").write_text("[1]\n"), "train.jsonl, line 1: holds [1], no JSON object"),
        (lambda f: (f / "train.jsonl").write_text(""), "holds no row"),
        (lambda f: (f / "train.jsonl").write_text('{"text": "a"}\n'), "valid is one of ['text']"),
        (
            lambda f: (f / "train.jsonl").write_text('{"prompt": 3}\n'),
            "train.jsonl, line 1: column 'prompt': holds 3",
        ),
        (lambda f: (f / "more.parquet").write_bytes(b"PAR1 no"), "more.parquet: not a whole parquet file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, tokenizer, spoil, said):
    folder = helpers.write_rows(tmp_path / "a", ROWS)
    spoil(folder)
    with pytest.raises(InputError) as error:
        load(folder, tokenizer)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_special_tokens_that_a_text_spells_out_stay_text(tmp_path, tokenizer):
    task = load(helpers.write_rows(tmp_path / "a", ROWS), tokenizer)
    text = "we ran<|endoftext|> home"
    (prompt,) = task.prompt_ids([text])
    tokens, mask = task.encode_responses([text])
    assert task.eos_id not in prompt and tokens[0][mask[0]].tolist() == [*prompt, task.eos_id]


def test_without_a_network(monkeypatch, tokenizer):
    """One line that names the local way."""
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError) as error:
        load("", tokenizer, dataset="trl-lib/tldr")
    assert "config.task.dataset='trl-lib/tldr': not to be had from the hub (no route)" in str(error.value)
    assert "config.task.path=<folder" in str(error.value)


@pytest.mark.parametrize(("name", "revision"), [("a/b", None), ("a/b@v2", "v2")])
def test_a_data_set_may_carry_a_revision(monkeypatch, tokenizer, name, revision):
    import datasets

    def load_dataset(repository, subset, cache_dir, revision):
        asked.append((repository, subset, revision))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load("", tokenizer, dataset=name)
    assert asked == [("a/b", None, revision)] and len(task.prompts["train"]) == 19


def test_the_stream_goes_on_where_it_was():
    """Every epoch has each row once; a step's rows depend on nothing that was read before."""
    rows = prompt_rows(10, 4, seed=3)
    read = [list(rows[step]) for step in range(5)]
    flat = [row for batch in read for row in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert list(prompt_rows(10, 4, seed=3)[3]) == read[3]
    other = prompt_rows(10, 4, seed=4)
    assert [list(other[step]) for step in range(5)] != read


@pytest.mark.parametrize("size", [4, 5, 10])
def test_a_pool_has_no_prompt_twice_and_an_epoch_neither(size):
    """Ten prompts: of each epoch so many pools as it fills, in another order; a step says which."""
    pools = pool_rows(10, size, seed=3)
    read = [list(pools[step]) for step in range(40)]
    whole = 10 // size
    for epoch in range(40 // whole):
        rows = [row for pool in read[epoch * whole : (epoch + 1) * whole] for row in pool]
        assert len(rows) == len(set(rows)) == whole * size and set(rows) <= set(range(10))
    assert {row for pool in read for row in pool} == set(range(10)) and read[0] != read[whole]
    assert list(pool_rows(10, size, seed=3)[7]) == read[7]
    other = pool_rows(10, size, seed=4)
    assert [list(other[step]) for step in range(40)] != read
