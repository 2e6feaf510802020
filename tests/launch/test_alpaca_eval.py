"""`launch.alpaca_eval` as a user calls it: a tiny policy, a judge on a small server, and annotations that exist."""

import json

import alpaca_annotations as made_up
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alpaca_calls import ASKED, SHORT, call, outputs, read, refused, write
from helpers import sigmoid
from real_text import CHAT
from services import QUICK_BACKOFF, Http, Judging, entries
from tokenizers import Tokenizer

from launch import alpaca_files, alpaca_outputs, environments
from launch import length_controlled as lc
from sea_jax import models
from sea_jax.errors import StorageError
from sea_jax.oracles import patience
from sea_jax.oracles.judge import is_swapped


def test_outputs_are_in_the_packages_format(alpaca, whole, capsys, tmp_path):
    assert [row["instruction"] for row in whole] == ASKED
    for row in whole:
        assert (row["dataset"], row["generator"]) == ("made", str(alpaca / "policy")) and row["output"]
        assert (row["temperature"], row["max_new_tokens"], row["seed"]) == (0.9, 6, 0)
    texts = [row["output"] for row in whole]
    again = outputs(alpaca, tmp_path / "b.json", "--name=me")
    assert [row["output"] for row in again] == texts and again[0]["generator"] == "me"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 of 7 outputs" and said[-1].startswith(f"{tmp_path}/b.json: 7 outputs, ")
    assert texts != [row["output"] for row in outputs(alpaca, tmp_path / "c.json", "--seed=1")]


def test_greedy_outputs_are_the_likeliest_tokens(alpaca, tmp_path):
    """One token after another through the whole model, without cache and padding on the left."""
    rows = outputs(alpaca, tmp_path / "out.json", "--temperature=0")
    model, params = models.load(str(alpaca / "policy"))
    tokenizer = Tokenizer.from_file(str(alpaca / "policy/tokenizer.json"))
    forward = jax.jit(lambda tokens, mask: model.apply({"params": params}, tokens, mask))
    for row in rows:
        ids = tokenizer.encode(row["instruction"], add_special_tokens=False).ids
        tokens, start = np.zeros((1, 96), np.int32), len(ids)
        tokens[0, :start] = ids
        end = start
        while end < start + 6 and (end == start or tokens[0, end - 1] != 0):  # 0 is the EOS
            logits = forward(jnp.array(tokens), jnp.arange(96)[None] < end)
            tokens[0, end] = int(np.argmax(logits[0, end - 1]))
            end += 1
        assert row["output"] == tokenizer.decode(tokens[0, start:end].tolist())


def test_outputs_depend_neither_on_limit_nor_batch_size(alpaca, whole, tmp_path):
    few = outputs(alpaca, tmp_path / "few.json", "--limit=4")
    assert few == whole[:4]
    assert outputs(alpaca, tmp_path / "few.json") == whole  # goes on
    assert outputs(alpaca, tmp_path / "two.json", "--batch_size=2") == whole
    (alpaca / "prompts.jsonl").write_text(
        "".join(json.dumps(dict(instruction=text)) + "\n" for text in ASKED)
    )
    lines = outputs(alpaca, tmp_path / "lines.json", f"--prompts={alpaca}/prompts.jsonl", "--batch_size=50")
    assert [row["output"] for row in lines] == [row["output"] for row in whole] and "dataset" not in lines[0]


def test_a_stopped_call_goes_on(alpaca, whole, tmp_path, monkeypatch):
    file, write_list, batches = tmp_path / "out.json", alpaca_files.write_list, []

    def full(to, rows):
        if batches:
            raise StorageError(f"{to}: No space left on device")
        batches.append(rows)
        write_list(to, rows)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(alpaca_files, "write_list", full)
        outputs(alpaca, file)
    assert ended.value.code == 74 and read(file) == whole[:3]
    made, generate = [], alpaca_outputs._Writer.write
    with monkeypatch.context() as patch:
        patch.setattr(
            alpaca_outputs._Writer, "write", lambda self, first: made.append(first) or generate(self, first)
        )
        assert outputs(alpaca, file) == whole and made == [3, 4]
    monkeypatch.setattr(alpaca_outputs, "_Writer", None)  # a further call loads no policy
    assert outputs(alpaca, file) == whole


def test_a_chat_template_is_used(alpaca, tmp_path, whole):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(alpaca / "policy" / name)
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    call(tmp_path, f"--prompts={alpaca}/prompts.json", f"--output={tmp_path}/x.json", *SHORT)
    plain = call(
        tmp_path, f"--prompts={alpaca}/prompts.json", f"--output={tmp_path}/y.json", "--chat=no", *SHORT
    )
    assert plain is None
    texts = [[row["output"] for row in read(tmp_path / name)] for name in ("x.json", "y.json")]
    assert texts[1] == [row["output"] for row in whole] != texts[0]


@pytest.fixture
def judged(alpaca, tmp_path, whole, monkeypatch):
    """A function that has outputs judged by a server; returns what is in annotations.json."""
    monkeypatch.setattr(patience, "_BACKOFF", QUICK_BACKOFF)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-shown")
    write(tmp_path / "out.json", whole)

    def judge(server, *more):
        outputs(alpaca, tmp_path / "out.json", f"--references={alpaca}/references.json",
                f"--judge_url={server.url}/v1", "--judge_model=a/judge", *more)  # fmt: skip
        return read(tmp_path / "a_judge/annotations.json")

    return judge


def test_a_judge_annotates_in_a_random_order(alpaca, judged, whole, tmp_path, capsys):
    judging = Judging()
    with Http(judging) as server:
        rows = judged(server)
        assert (
            judged(server) == rows and len(judging.seen) == 8
        )  # seven comparisons and the one that tries it
        said = capsys.readouterr().out.splitlines()
    baseline = {row["instruction"]: row["output"] for row in read(alpaca / "references.json")}
    assert [row["instruction"] for row in rows] == ASKED
    for row, output in zip(rows, whole, strict=True):
        first, second = baseline[row["instruction"]], output["output"]
        assert (row["output_1"], row["output_2"]) == (first, second)
        assert (row["generator_1"], row["generator_2"]) == ("baseline", output["generator"])
        np.testing.assert_allclose(
            row["preference"], 1 + sigmoid(len(second) - len(first))
        )  # it likes length
        assert row["annotator"] == f"a/judge at {server.url}/v1, seed 0" and row["dataset"] == "made"
    shown = {}
    for _, key, asked in judging.seen[1:]:
        text = asked["messages"][0]["content"]
        shown[tuple(entry["output"] for entry in entries(text))] = key
    orders = [is_swapped(0, row["instruction"], row["output_2"], row["output_1"]) for row in rows]
    for swapped, row in zip(orders, rows, strict=True):
        pair = (row["output_1"], row["output_2"])
        assert (pair if swapped else pair[::-1]) in shown
    assert {*orders} == {True, False} and {*shown.values()} == {"Bearer sk-never-shown"}
    share = np.array([row["preference"] - 1 for row in rows])
    assert said[-3].startswith(f"win rate                    {100 * share.mean():.2f} ± ")
    assert said[-1].startswith(
        "length_controlled_minimal, not the leaderboard's number: without difficulties and "
    )
    assert said[-5].endswith("7 of 7 comparisons answered, 0 calls by this command")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sk-never-shown" not in file.read_bytes()


def test_no_answer_is_lost_or_bought_twice(judged, tmp_path, capsys):
    """The key is refused after three answers; then a kill cuts the journal in two places."""
    stop = lambda n, top: (401, {}, b"{}") if n >= 4 else top  # noqa: E731
    with Http(Judging(spoil=stop)) as server, pytest.raises(SystemExit) as ended:
        judged(server, "--in_flight=1")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "status 401" in said and said.count("\n") == 1
    journal = tmp_path / "a_judge/annotations.jsonl"
    bought = journal.read_text()
    assert bought.count("\n") == 3 and not (tmp_path / "a_judge/annotations.json").exists()
    port = server.port

    def goes_on(content, calls):
        judging = Judging()
        journal.write_text(content)
        with Http(judging, port) as server:
            rows = judged(server)
        kept = "".join(line for line in bought.splitlines(keepends=True) if line.rstrip() in content)
        assert len(judging.seen) == calls and journal.read_text().startswith(kept)
        return rows

    rows = goes_on(bought, 4 + 1)
    assert all(row["preference"] for row in rows)
    assert goes_on(bought[:-1], 4 + 1) == rows  # the answer is whole
    assert goes_on(bought[:-9], 5 + 1) == rows
    assert goes_on("{", 7 + 1) == rows and journal.read_text().count("\n") == 7


def test_a_reply_that_cannot_be_read_is_no_annotation(judged, capsys):
    def unreadable(n, top):
        return [] if ASKED[2] in judging.seen[n][2]["messages"][0]["content"] else top

    judging = Judging(spoil=unreadable)
    with Http(judging) as server:
        rows = judged(server)
        assert [row["preference"] is None for row in rows] == [i == 2 for i in range(7)]
        assert "6 of 7 comparisons answered, 10 calls" in capsys.readouterr().out
        judging.spoil = lambda n, top: top
        assert judged(server)[2]["preference"] and len(judging.seen) == 1 + 6 + 3 + 1 + 1


def test_other_outputs_are_other_comparisons(judged, alpaca, tmp_path):
    judging = Judging()
    with Http(judging) as server:
        judged(server)
        (tmp_path / "out.json").unlink()
        outputs(alpaca, tmp_path / "out.json", "--seed=1")
        judged(server, "--seed=1")
        assert len(judging.seen) == 16
        judged(server, "--seed=1", "--limit=5")
        assert len(judging.seen) == 16 and len(read(tmp_path / "a_judge/annotations.json")) == 5


def test_mistakes_are_found_before_outputs_are_generated(judged, alpaca, tmp_path, capsys):
    (tmp_path / "out.json").unlink()
    with Http(lambda *_: (401, {}, b"{}")) as server, pytest.raises(SystemExit):
        judged(server)
    assert "status 401" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
    few = write(tmp_path / "few.json", read(alpaca / "references.json")[:-1])
    judge = ("--judge_url=http://127.0.0.1:1/v1", "--judge_model=x", f"--references={few}")
    said = refused(capsys, alpaca / "policy", f"--prompts={alpaca}/prompts.json", *judge)
    assert said == f"{few}: no instruction={ASKED[0]!r}; valid are outputs for all of --prompts"


@pytest.mark.parametrize("kind", made_up.KINDS)
def test_annotations_that_exist(tmp_path, capsys, kind):
    rows, file = made_up.made(0, tmp_path)
    annotations, difficulty = write(tmp_path / "annotations.json", rows), ()
    if kind == "length_controlled_noreg":
        file.write_text("\n".join(",".join(line.split(",")[2:5:2]) for line in file.read_text().splitlines()))
    if kind != "length_controlled_minimal":
        difficulty = (f"--difficulty={file}",)
    call(f"--annotations={annotations}", *difficulty)
    said = capsys.readouterr().out
    share = np.array([alpaca_files.share(row["preference"]) for row in rows])
    lengths = [np.array([len(row[name]) for row in rows]) for name in ("output_2", "output_1")]
    found = lc.score(share, *lengths, range(160), lc.read_difficulty(file) if difficulty else None)
    assert said.startswith("model against baseline, 160 instructions\n") and f"\n{kind}, " in said
    assert f"win rate                    {found.win_rate:.2f} ± {found.standard_error:.2f} %\n" in said
    controlled = f"{found.length_controlled:.2f} ± {found.length_controlled_error:.2f} %"
    assert f"length-controlled win rate  {controlled}" in said
    assert ("not the leaderboard's number" in said) == (kind != "length_controlled_v1")


def test_prompts_number_the_instructions(tmp_path, capsys):
    """Annotations in another order, and some missing, have the difficulties of their instructions."""
    rows, file = made_up.made(1, tmp_path)
    prompts = write(tmp_path / "prompts.json", [dict(instruction=row["instruction"]) for row in rows])
    call(f"--annotations={write(tmp_path / 'a.json', rows)}", f"--difficulty={file}")
    right = capsys.readouterr().out
    moved = write(tmp_path / "b.json", rows[40:] + rows[:40])
    call(f"--annotations={moved}", f"--difficulty={file}", f"--prompts={prompts}")
    said = capsys.readouterr().out.split("\n")
    assert (
        said[1] == right.split("\n")[1]
        and said[2].split(" (")[0][:33] == right.split("\n")[2].split(" (")[0][:33]
    )
    write(prompts, [dict(instruction="another")])
    line = refused(capsys, f"--annotations={moved}", f"--difficulty={file}", f"--prompts={prompts}")
    assert line == "annotations: instruction='q40'; valid is one of --prompts"


@pytest.mark.alpaca_eval
def test_the_package_reads_what_is_written(judged, tmp_path, capsys):
    """Its function scores our annotations as our command does."""
    with Http(Judging()) as server:
        rows = judged(server)
    said = capsys.readouterr().out.splitlines()
    _, file = made_up.made(0, tmp_path)
    python = environments.ensure("alpaca_eval", made_up.REQUIREMENTS)
    (theirs,) = made_up.packages_scores(python, [(rows, file, "length_controlled_minimal", 1e-10)])
    assert said[-3].endswith(f" {theirs[0]:.2f} ± {theirs[1]:.2f} %")
    assert said[-2].endswith(f" {theirs[2]:.2f} ± {theirs[3]:.2f} %")
