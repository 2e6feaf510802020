"""Tests `sea_jax.align`: a whole run from a function to its figure, labels and policy, and a user's mistakes."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from ml_collections import ConfigDict
from real_text import posts, user_files

import sea_jax
from sea_jax import models
from sea_jax.config.overrides import with_fields
from sea_jax.errors import InputError, StoppedError
from sea_jax.experiment.base_config import base_config
from sea_jax.labels import reading
from sea_jax.notebook import AlignedRun, settings
from sea_jax.tasks.tokenizer import load_tokenizer

GUIDE = (ROOT / "docs/guides/library.md").read_text()
BLOCKS = dict(re.findall(r"<!-- test: (\w+) -->\n\n```python\n(.*?)```", GUIDE, re.DOTALL))
TINY = {
    "sft.steps": 2, "sft.batch_size": 4, "policy.num_layers": 1, "policy.width": 16, "policy.num_heads": 2,
    "policy.mlp_width": 16, "backbone.num_prompts": 4, "backbone.num_responses": 2, "ensemble.num_draws": 8,
    "sea.num_responses": 3, "eval.num_prompts": 4, "eval.batch_size": 4, "eval.num_pairs": 4,
}  # fmt: skip
PROMPTS = [f"Say something about the number {i}." for i in range(9)]
asked = []  # sizes of the calls of `shorter`


def shorter(prompts, first, second):
    asked.append(len(prompts))
    return [None if len(a) == len(b) else float(len(a) < len(b)) for a, b in zip(first, second, strict=True)]


def flat(prompts, responses):
    return [0.0 for _ in prompts]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def mini(cache, tmp_path_factory):
    """Calls `sea_jax.align` on a tiny miniature."""
    folder = tmp_path_factory.mktemp("mini")

    def call(workdir="run", fields=(), prefer=shorter, budget=8, **arguments):
        fields = TINY | {"cache_dir": cache} | dict(fields)
        given = dict(prefer=prefer, budget=budget, fields=fields, progress=False) | arguments
        return sea_jax.align(workdir=folder / workdir, **given)

    return call


@pytest.fixture(scope="module")
def run(mini):
    return mini()


def test_labels_of_a_run(run):
    """Those that the function gave, named by it; a table has the columns of the exported labels."""
    rows = list(run.labels)
    assert len(run.labels) == len(rows) == 8 and all(tuple(row) == reading.COLUMNS for row in rows)
    for row in rows:
        assert (len(row["first"]) < len(row["second"])) == (row["chosen"] == "first")
        assert row["probability"] in (0, 1) and re.fullmatch(
            rf"function {__name__}\.shorter@[0-9a-f]{{12}}", row["labelled_by"]
        )
    table = run.labels.to_pandas()
    assert isinstance(table, pd.DataFrame) and table.shape == (8, len(reading.COLUMNS))
    assert table.prompt.tolist() == [row["prompt"] for row in rows] and table.step.is_monotonic_increasing
    assert table.answered_at.dt.year.min() > 2000
    assert repr(run.labels) == f"<8 labels; {run.folder}/labels.sqlite>"


def test_figure_and_report(run):
    """A notebook gets the picture from the figure itself; pyplot keeps its backend and knows nothing of it."""
    import matplotlib
    from matplotlib import pyplot as plt

    before = matplotlib.get_backend()
    figure = run.figure()
    first, second, _ = figure.axes
    assert first.get_xlabel() == "oracle queries"
    assert not second.axison, "a function that compares has no reward to draw"
    assert figure.axes[0].lines[0].get_xdata()[-1] == 8
    assert figure._repr_png_() == (run.workdir / "report.png").read_bytes()
    assert matplotlib.get_backend() == before and not plt.get_fignums()
    assert run.report.startswith((run.workdir / "report.txt").read_text().rstrip())
    assert repr(run).startswith("<SEA: 8 labels") and str(run.folder) in repr(run)


def test_generate(run):
    """Greedy by default: the responses of the last evaluation; samples depend on their seed alone."""
    rows = [json.loads(line) for line in (run.folder / "responses.jsonl").read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    assert run.generate(prompts) == [row["after"] for row in rows]
    assert run.generate(prompts[:1]) == [rows[0]["after"]]
    once, again = (run.generate(prompts, temperature=1.0, seed=3) for _ in range(2))
    assert once == again != run.generate(prompts, temperature=1.0, seed=4)
    assert len(run.generate(np.array(prompts))) == 4 and run.generate([]) == []
    short = run.generate(prompts, max_tokens=1)
    assert [text.startswith(cut) for text, cut in zip(run.generate(prompts), short, strict=True)] == [
        True
    ] * 4
    for arguments, said in (
        (dict(prompts="one"), "prompts='one': valid is a list of texts"),
        (dict(prompts=["a", ""]), "prompts[1]='': valid is a text that is not empty"),
        (dict(prompts=["a " * 200]), "prompts[0]: "),
        (dict(prompts=["a"], temperature=-1), "temperature=-1: valid is a number of at least 0"),
        (dict(prompts=["a"], max_tokens=0), "max_tokens=0: valid is 1 to"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(said)}"):
            run.generate(**arguments)


def test_the_same_call_again(mini, run):
    """Asks nothing more; a larger budget goes on, and a smaller one is refused."""
    before = list(run.labels)
    asked.clear()
    again = mini()
    assert not asked and list(again.labels) == before and again.report == run.report
    copied = json.loads((run.workdir / "config.json").read_text())
    assert copied["oracle"]["kind"] == "function" and copied["train"]["query_budget"] == 8
    with pytest.raises(
        InputError, match=r"^budget=7: valid is at least 8, the labels of the run in \S+, or ano"
    ):
        mini(budget=7)


def test_a_larger_budget_goes_on(mini):
    first = list(mini("grows", budget=4).labels)
    assert len(first) == 4
    more = mini("grows", budget=8)
    assert list(more.labels)[:4] == first and len(more.labels) == 8
    assert more.figure().axes[0].lines[0].get_xdata().tolist() == [0, 4, 8]


def test_another_function_in_the_same_folder(mini, run):
    def longer(prompts, first, second):
        return [float(len(a) > len(b)) for a, b in zip(first, second, strict=True)]

    with pytest.raises(InputError) as error:
        mini(prefer=longer)
    line = str(error.value)
    assert re.search(r"with oracle\.function='\S+\.shorter@\w{12}', not '\S+longer@\w{12}'", line)
    assert line.endswith("or another workdir") and "--" not in line


def test_a_run_that_is_stopped_goes_on(mini):
    """By Ctrl-C in the second call for labels; the error says what to call."""
    state = {"calls": 0}

    def stops(prompts, first, second):
        state["calls"] += 1
        if state["calls"] == 4:  # after the trial and two evaluations
            signal.raise_signal(signal.SIGINT)
        return shorter(prompts, first, second)

    with pytest.raises(StoppedError, match=r"and saved; .* here: the same call with workdir='.*stopped'"):
        mini("stopped", prefer=stops)
    assert len(mini("stopped", prefer=stops, budget=7).labels) == 7  # fewer than were meant to be


def test_a_function_that_fails_at_the_start_can_be_mended(mini):
    """No label was bought, so the same folder takes another function."""
    with pytest.raises(InputError, match="ZeroDivisionError"):
        mini("mended", prefer=lambda prompts, first, second: 1 / 0)
    assert len(mini("mended", budget=4).labels) == 4


def raising(prompts, first, second):
    found = []
    for a, b in zip(first, second, strict=True):
        found.append({len(first[0]): 1.0}[len(a)] * len(b))
    return found


RETURNS = {
    "short": (lambda prompts, first, second: [0.5], "returned 1 values; valid is 2, one per prompt"),
    "nan": (
        lambda prompts, first, second: [0.5, float("nan")],
        "row 1: nan; valid is a number in [0, 1], or None for no answer; prompts[1]='post: ",
    ),
    "two": (lambda prompts, first, second: [2, 0], "row 0: 2.0; valid is a number in [0, 1]"),
    "nothing": (lambda prompts, first, second: None, "returned None; valid is a list or array of 2 values"),
}


@pytest.mark.parametrize("case", RETURNS)
def test_a_function_is_tried_on_two_rows(mini, case):
    function, said = RETURNS[case]
    with pytest.raises(InputError) as error:
        mini(case, prefer=function)
    assert re.match(rf"prefer={__name__}\.<lambda>@\w{{12}}: {re.escape(said)}", str(error.value))
    assert not (mini_folder(mini) / case / "runs").exists()


def mini_folder(mini):
    return inspect.getclosurevars(mini).nonlocals["folder"]


def test_an_exception_names_line_and_row_and_keeps_its_traceback(mini):
    def dividing(prompts, first, second):
        return [len(a) / (len(first[0]) - len(a)) for a in second[::-1]] and [1 / 0 for _ in prompts]

    line = inspect.getsourcelines(dividing)[1] + 1
    with pytest.raises(InputError) as error:
        mini("raises", prefer=dividing)
    said = f"{__file__}:{line}: ZeroDivisionError: division by zero"
    assert said in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_no_answer_costs_no_label(mini):
    """A function that answers every other question; both sorts are in the journal."""
    state = {"calls": 0}

    def sometimes(prompts, first, second):
        answers = []
        for _ in prompts:
            state["calls"] += 1
            answers.append(0.9 if state["calls"] % 2 else None)
        return answers

    run = mini("sometimes", prefer=sometimes)
    summary = reading.summary(run.folder / "labels.sqlite")
    assert len(run.labels) == summary.labels == 8 and summary.unanswered >= 4
    assert {row["probability"] for row in run.labels} == {0.9}


MISTAKES = {
    "neither": (
        dict(prefer=None),
        "prefer, score: neither given; valid is one: prefer=f(prompts, first, second) or",
    ),
    "both": (dict(score=flat), "prefer, score: both given; valid is one"),
    "the other form": (
        dict(prefer=flat),
        f"prefer: {__name__}.flat(prompts, responses); valid is a function f(prompts, first, second)",
    ),
    "no function": (dict(prefer=3), "prefer: 3, of type int; valid is a function f(prompts, first, second)"),
    "the other form by name": (
        dict(prefer="configs/smollm2.py:sentiment"),
        "prefer='configs/smollm2.py:sentiment': a function of form score; valid is score='configs/smollm2.py:se",
    ),
    "no budget": (dict(budget=0), "budget=0: valid is at least 1"),
    "a budget in words": (dict(budget="many"), "budget='many': valid is a whole number of at least 1"),
    "method": (dict(method="see"), "method='see': valid is one of ['apl', "),
    "methods": (dict(method=("sea",)), "method=('sea',): valid is the name of one method"),
    "loss": (dict(loss="dpoo"), "loss='dpoo': valid is one of ('dpo', 'ipo', 'simpo', 'slic')"),
    "seed": (dict(seed=-1), "seed=-1: valid is at least 0"),
    "rewards": (
        dict(method="perfect_rl"),
        "method='perfect_rl': valid with an oracle that has rewards, not a",
    ),
    "field": (
        dict(fields={"train.learning_rat": 1}),
        "config.train.learning_rat=1: no such field; valid fields of config.train are ask_ahead, ",
    ),
    "value": (dict(fields={"config.train.beta": -1}), "config.train.beta=-1.0: valid is a number above 0"),
    "taken": (
        dict(fields={"train.query_budget": 1}),
        "fields['train.query_budget']=1: valid is the argument budget",
    ),
    "section": (
        dict(fields={"train": 3}),
        "fields['train']=3: a section; valid are its fields, as 'train.ask_ah",
    ),
    "no fields": (dict(fields=["train.beta"]), "fields=['train.beta']: valid is a dict, as"),
    "no config": (dict(config="tldr"), "config='tldr': valid is what a config file's get_config() returns"),
    "only prompts": (
        dict(prompts=PROMPTS),
        "policy='', prompts=texts: valid is both, or neither for the miniature",
    ),
    "only a policy": (dict(policy="x"), "policy='x', prompts=None: valid is both, or neither"),
    "one prompt": (dict(policy="x", prompts="Hello"), "prompts='Hello': valid is a list of texts"),
    "no text": (dict(policy="x", prompts=[*PROMPTS, 3]), "prompts[9]=3: valid is a text that is not empty"),
    "few prompts": (
        dict(policy="x", prompts=["a", "b ", "b"] * 9),
        "prompts: 2 different texts; valid is at least 5",
    ),
    "references": (
        dict(policy="x", prompts=PROMPTS, references=["a"]),
        "references: 1 texts; valid is 9, one per prompt",
    ),
    "references alone": (dict(references=["a"]), "references: given without prompts; valid is None, or both"),
    "policy": (dict(policy=3, prompts=PROMPTS), "policy=3: valid is a folder or a hub name"),
    "workdir": (dict(workdir=3), "workdir=3: valid is a folder, or None for a fresh one"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, tmp_path, monkeypatch):
    """One line that begins with the argument, before any folder is made."""
    arguments, said = MISTAKES[case]
    if case != "the other form by name":
        monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        sea_jax.align(**dict(prefer=shorter, budget=4) | arguments)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    nearest = {"method": "sea", "field": "train.learning_rate"}
    assert case not in nearest or str(error.value).endswith(f"; nearest is {nearest[case]}")


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"^workdir: \S+/file/x\S*: Not a directory; valid: a folder that can be"
    ):
        sea_jax.align(prefer=shorter, workdir=tmp_path / "file/x")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    user_files(folder)
    return folder


SMALL = {
    "train.batch_size": 2, "backbone.num_prompts": 4, "backbone.num_responses": 2, "sea.num_responses": 3,
    "task.response_length": 6, "eval.every_queries": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def text_run(files, tmp_path_factory):
    """The guide's example on a policy and prompts of one's own, on a tiny policy."""
    code = BLOCKS["text"].replace("data/smollm2/model", str(files / "policy"))
    code = code.replace("runs/short", str(tmp_path_factory.mktemp("text") / "run"))
    code = code.replace("fields={", f"progress=False, fields={SMALL} | {{")
    names = {"prompts": [row["prompt"] for row in posts(20)]}
    exec(compile(code, "docs/guides/library.md: text", "exec"), names)
    return names["run"]


def test_a_policy_of_ones_own(text_run, files):
    """The rows of the labels are the given prompts; prompts may be longer afterwards."""
    given = {row["prompt"] for row in posts(20)}
    assert {row["prompt"] for row in text_run.labels} <= given and len(text_run.labels) == 8
    assert text_run.config.task.num_heldout == text_run.config.eval.num_prompts == 4
    rows = (text_run.folder / "responses.jsonl").read_text().splitlines()
    assert len(rows) == 4 and {json.loads(row)["prompt"] for row in rows} <= given
    assert not {json.loads(row)["prompt"] for row in rows} & {row["prompt"] for row in text_run.labels}
    tokenizer, long = load_tokenizer(files / "policy"), "it"
    while len(tokenizer.encode([long])[0]) <= text_run.config.task.prompt_length:
        long += " was late"
    one, other = text_run.generate([long, "it"])
    assert [one] == text_run.generate([long]) and [other] == text_run.generate(["it"])


def test_save(text_run, files, tmp_path):
    """The folder has weights, shape and the tokenizer, and opens as one of Hugging Face's layout."""
    folder = text_run.save(tmp_path / "policy")
    params = models.load(str(folder))[1]
    before = models.load(str(files / "policy"))[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), before, params)
    assert max(jax.tree.leaves(moved)) > 0
    assert load_tokenizer(folder).backend.to_str() == load_tokenizer(files / "policy").backend.to_str()
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["GPTNeoXForCausalLM"]
    with pytest.raises(InputError, match=r"^folder='\S+policy': holds files; valid is a new or empty folder"):
        text_run.save(folder)
    with pytest.raises(InputError, match=r"^folder='\S+': Not a directory; valid is"):
        text_run.save(folder / "config.json" / "x")


def test_generate_without_the_starting_policy(text_run, files):
    """What the run ended with is whole in its own folder."""
    before = text_run.generate(["it was late"])
    again = AlignedRun(text_run.config, text_run.workdir, text_run.report)
    (files / "policy").rename(files / "gone")
    try:
        assert again.generate(["it was late"]) == before
    finally:
        (files / "gone").rename(files / "policy")


def test_other_prompts_in_the_same_folder(text_run, files):
    """The file of the run's prompts stays as it is."""
    file = text_run.workdir / "prompts.jsonl"
    before = file.read_bytes()
    with pytest.raises(
        InputError, match=r"^prompts: not those of the runs in \S+; valid: these, or another workdir"
    ):
        sea_jax.align(files / "policy", PROMPTS, score=flat, workdir=text_run.workdir, progress=False)
    assert file.read_bytes() == before


def test_sizes_fit_the_prompts(files):
    """Tokens of the longest prompt in steps of 16, those of references; splits of a fifth, at most 64."""
    made = lambda *texts: settings.on_prompts(None, str(files / "policy"), settings.Prompts.of(*texts))  # noqa: E731
    tokenizer = load_tokenizer(files / "policy")
    longest = max(len(ids) for ids in tokenizer.encode(PROMPTS))
    config = made(PROMPTS, None)
    assert longest <= config.task.prompt_length < longest + 16 and config.task.prompt_length % 16 == 0
    assert (config.task.response_length, config.task.reference_column) == (32, "none")
    assert (config.task.num_heldout, config.task.num_tuning, config.backbone.num_prompts) == (1, 1, 7)
    references = ["a b c"] + ["a"] * 8
    config = made(PROMPTS, references)
    most = max(len(ids) for ids in tokenizer.encode(references)) + 1
    assert (config.task.response_length, config.task.reference_column) == (most, "reference")
    config = made([f"{i}" for i in range(400)], None)
    assert (config.task.num_heldout, config.eval.num_prompts, config.backbone.num_prompts) == (64, 64, 64)
    with pytest.raises(
        InputError, match=r"^prompts\[9\]: \d+ tokens; valid is at most 96, the policy's context less"
    ):
        made([*PROMPTS, "a b " * 99], None)


def test_fields_stand_over_what_the_method_would_have():
    """The settings have another rate for passive DPO; a user's own is the one that is read."""
    config = settings.of_method(settings.text_config(settings.TextTask()), "passive")
    assert config.train.learning_rate == 1e-4 and not config.overrides
    assert with_fields(config, {"train.learning_rate": 1}).train.learning_rate == 1.0


def test_a_config_of_ones_own(mini, cache):
    """It is not changed; its fields are those of the run, but for those that arguments set."""
    config = ConfigDict(with_fields(base_config(), TINY | {"train.beta": 0.3, "cache_dir": cache}).to_dict())
    config.backbone.kind, config.ensemble.prior, config.ensemble.kind = "policy", "random", "linear"
    before = config.to_dict()
    run = mini("config", config=config, method="passive", budget=4, fields={})
    assert config.to_dict() == before and run.config.train.beta == 0.3
    assert run.config.methods == ("passive",) and run.folder.name == "passive-seed0" and len(run.labels) == 4


def test_the_guides_ten_lines(cache, tmp_path, monkeypatch, capsys):
    """As they stand, in a fresh folder, on a tiny model; a second call makes another folder."""
    small = with_fields(settings.on_miniature(), TINY | {"cache_dir": cache, "progress": False})
    monkeypatch.setattr(settings, "on_miniature", lambda: small)
    monkeypatch.chdir(tmp_path)
    code = BLOCKS["align"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names = {}
    exec(compile(code, "<stdin>", "exec"), names)  # a function without a source, as in Python's shell
    run = names["run"]
    assert re.fullmatch(r"runs/align-\d{8}-\d{6}", str(run.workdir)) and len(run.labels) == 100
    assert f"work directory: {run.workdir}\n" in capsys.readouterr().err
    assert code in (ROOT / "README.md").read_text()


def test_parts_are_kept_beside_fresh_folders(tmp_path, monkeypatch):
    from sea_jax.notebook import front

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front.time, "strftime", lambda form: "today")
    monkeypatch.setattr(
        front.experiment, "run", lambda config, folder, extend: f"{folder} {config.cache_dir}"
    )
    for name in ("align-today", "align-today-2"):
        assert sea_jax.align(prefer=shorter, progress=False).report == f"runs/{name} runs/cache"
    assert sea_jax.align(prefer=shorter, progress=False, workdir="own").report == "own "
    own = sea_jax.align(prefer=shorter, progress=False, fields={"cache_dir": "parts"})
    assert own.report == "runs/align-today-3 parts"


def test_import_is_light_and_the_name_stays_a_function():
    """JAX is imported when `align` is first asked for; a module of that name would hide it."""
    code = """
import sys
import sea_jax
assert not {"jax", "numpy", "ml_collections"} & {*sys.modules}, "import"
assert {"align", "AlignedRun", "__version__"} <= {*dir(sea_jax)}
import sea_jax.notebook.front
assert sea_jax.align is sea_jax.notebook.front.align and callable(sea_jax.align)
try:
    sea_jax.alig
except AttributeError as error:
    assert "'alig'" in str(error)
assert "matplotlib" not in sys.modules and "pandas" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_pandas(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        InputError, match=r"pandas is not installed; valid: pip install 'sea_jax\[data\]', or list"
    ):
        run.labels.to_pandas()
    assert len(list(run.labels)) == 8
