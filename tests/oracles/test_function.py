"""Tests the oracle made of a user's function: both forms, what it may return, and every mistake in it."""

import json
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import ROOT, sigmoid
from real_text import user_files
from small_run import loop, small_run

from configs import quickstart
from sea_jax.errors import InputError
from sea_jax.experiment import run as experiment
from sea_jax.experiment import validate
from sea_jax.experiment.oracles import make_function_oracle
from sea_jax.oracles import function, protocol
from sea_jax.oracles.labeller import Labeller
from sea_jax.oracles.protocol import compute_locally

TEXTS = ["x0", "x1", "x2"], ["a", "bbbb", "cc"], ["aaa", "b", "cc"]
LENGTHS = "def score(prompts, responses):\n    return [len(y) for y in responses]\n"
SHORTER = """\
def prefer(prompts, first, second):
    return [None if len(a) == len(b) else float(len(a) < len(b)) for a, b in zip(first, second)]
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file of rules; returns the name of its function."""

    def write(code, name="score", file="rules.py"):
        (tmp_path / file).write_text(code)
        return f"{tmp_path / file}:{name}"

    return write


def oracle(name):
    return function.make_oracle(function.load(name))


def returning(text, form="score"):
    """Code of a function that returns a given expression of its argument `prompts`."""
    return f"def f({', '.join(function.FORMS[form])}):\n    return {text}\n"


def test_rewards_make_a_bradley_terry_oracle(write):
    made = oracle(write(LENGTHS))
    assert not isinstance(made, protocol.PartialOracle)
    rewards = made.rewards(*TEXTS[:2])
    assert rewards.dtype == np.float32 and rewards.tolist() == [1, 4, 2]
    found = made.probability(*TEXTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, sigmoid(np.array([-2.0, 3.0, 0.0])), rtol=1e-12)


def test_preferences_may_be_unanswered(write):
    made = oracle(write(SHORTER, "prefer"))
    assert isinstance(made, protocol.PartialOracle) and not hasattr(made, "rewards")
    answers = made.answers(*TEXTS)
    assert answers.answered.tolist() == [True, True, False]
    assert answers.probability.dtype == np.float64 and answers.probability[:2].tolist() == [1, 0]
    labeller = Labeller(made)
    assert labeller.label(*TEXTS, rng_seed=0).prefers_first.tolist() == [True, False, False]
    assert (labeller.num_queries, labeller.num_dropped) == (2, 1)


@pytest.mark.parametrize("form", ["score", "prefer"])
@pytest.mark.parametrize(
    "wrapped",
    [list, tuple, np.array, np.float32, jnp.array, torch.tensor,
     lambda row: torch.tensor(row, dtype=torch.bfloat16), lambda row: torch.tensor(row, requires_grad=True),
     lambda row: [np.float64(x) for x in row], lambda row: [np.array(x) for x in row],
     lambda row: [jnp.array(x) for x in row], lambda row: [torch.tensor(x) for x in row]],
)  # fmt: skip
def test_what_is_returned_may_be_of_any_library(form, wrapped):
    made = function.UserFunction("f", form, "", lambda **_: wrapped([0.5, 1.0, 0.25]))
    found = made.ask(*TEXTS[: len(function.FORMS[form])])
    assert found.dtype == np.float64 and found.tolist() == [0.5, 1.0, 0.25]


def test_integers_and_truth_values_are_numbers():
    ask = lambda values: function.UserFunction("f", "prefer", "", lambda **_: values).ask(*TEXTS).tolist()  # noqa: E731
    assert ask([True, np.bool_(False), 1]) == [1, 0, 1]
    np.testing.assert_array_equal(ask([None, 0, np.int8(1)]), [np.nan, 0, 1])


def test_parameters_tell_the_forms_apart(write):
    """In any order, with further ones that have defaults; methods and callable objects too."""
    code = """\
import functools
def a(responses, prompts, *, scale=2): return [scale * len(y) for y in responses]
def b(second, prompts, first, **rest): return [float(y < z) for y, z in zip(first, second)]
class Rules:
    def __call__(self, prompts, responses): return [len(y) for y in responses]
    def method(self, prompts, first, second): return [0.5] * len(first)
c, d = Rules(), Rules().method
e = functools.partial(a, scale=3)
"""
    forms = [function.load(write(code, name)).form for name in "abcde"]
    assert forms == ["score", "prefer", "score", "prefer", "score"]
    assert oracle(write(code, "a")).rewards(*TEXTS[:2]).tolist() == [2, 8, 4]
    assert oracle(write(code, "e")).rewards(*TEXTS[:2]).tolist() == [3, 12, 6]
    assert oracle(write(code, "b")).answers(*TEXTS).probability.tolist() == [1, 0, 0]


def test_every_row_of_a_call_comes_at_once(write):
    """Texts that are known are not asked about again, and what the function does to its lists stays there."""
    code = "calls = []\ndef score(prompts, responses):\n    calls.append(list(responses))\n"
    code += "    return [float(len(responses.pop())) for _ in prompts][::-1]\n"
    name = write(code)
    made, calls = oracle(name), sys.modules["sea_jax_oracle_rules"].calls
    responses = ["a", "bb", "a"]
    assert made.rewards(["x", "x", "x"], responses).tolist() == [1, 2, 1]
    assert made.rewards(["x", "y"], ["bb", "bb"]).tolist() == [2, 2]
    assert calls == [["a", "bb"], ["bb"]] and responses == ["a", "bb", "a"]
    assert made.rewards([], []).shape == (0,) and len(calls) == 2


def test_a_file_is_executed_once_until_it_changes(write, capsys):
    name = write("print('executed')\n" + LENGTHS)
    assert function.load(name) == function.load(name)
    assert capsys.readouterr().out == "executed\n"
    write("print('changed')\n" + LENGTHS)
    assert function.load(name).form == "score" and capsys.readouterr().out == "changed\n"


def test_modules_and_neighbours(write, tmp_path, monkeypatch):
    """By dotted name where Python finds it; a file may import the files beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write("WEIGHT = 2\n", file="weights_beside.py")
    code = "import weights_beside\ndef score(prompts, responses): return [weights_beside.WEIGHT] * len(prompts)\n"
    assert oracle(write(code)).rewards(["x"], ["y"]).tolist() == [2]
    (tmp_path / "own_package").mkdir()
    write(LENGTHS, file="own_package/rules.py")
    assert oracle("own_package.rules:score").rewards(*TEXTS[:2]).tolist() == [1, 4, 2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "''"),
        ("score", "'score'"),
        ("rules.py", "'rules.py'"),
        ("rules.py:", "'rules.py:'"),
        (":score", "':score'"),
        ("rules.py:a b", "'rules.py:a b'"),
        (".rules:score", "'.rules:score'"),
        ("rules.txt/x:score", "'rules.txt/x:score'"),
    ],
)
def test_a_name_of_another_form(name, said):
    with pytest.raises(InputError) as error:
        function.load(name)
    valid = "<file>.py:<function> or <package.module>:<function> with oracle.kind='function'"
    assert str(error.value) == f"config.oracle.function={said}: valid is {valid}"


CODES = {
    "missing": (LENGTHS, "scores", "rules.py has no 'scores'; valid is one of ['score']"),
    "none of the forms": ("x = 1\n", "f", f"rules.py has no 'f'; valid is a function {function._SIGNATURES}"),
    "not callable": ("f = 3\n", "f", f"f is 3, of type int, which cannot be called; valid is {function._SIGNATURES}"),
    "other names": ("def f(x, y): ...\n", "f", f"f(x, y); valid is {function._SIGNATURES}"),
    "positional": ("def f(prompts, responses, /): ...\n", "f", "f(prompts, responses, /); valid is f(prompts, resp"),
    "one more": ("def f(prompts, responses, scale): ...\n", "f", "f(prompts, responses, scale); valid is f(prompts"),
    "any": ("def f(**texts): ...\n", "f", "f(**texts); valid is f(prompts, responses) or f(prompts, first, second)"),
    "async": ("async def f(prompts, responses): ...\n", "f", "async f(prompts, responses); valid is f(prompts"),
    "class": ("class f:\n    def __init__(self, prompts, responses): ...\n", "f", "class f(prompts, responses); valid"),
    "no signature": ("f = min\n", "f", "f has no signature; valid is f(prompts"),
    "raises": ("\n\n1 / 0\n", "f", "rules.py:3: ZeroDivisionError: division by zero"),
    "exits": ("import sys\nsys.exit('used as a program')\n", "f", "rules.py:2: SystemExit: used as a program"),
    "syntax": ("def f(:\n", "f", "rules.py:1: SyntaxError: invalid syntax"),
    "imports": ("import no_such_module\n", "f", "rules.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
    "asserts": ("assert False\n", "f", "rules.py:1: AssertionError"),
}  # fmt: skip


def refused(name, call):
    """Returns the InputError of a call, which must be one line that begins with the field and its value."""
    with pytest.raises(InputError) as error:
        call()
    line = str(error.value)
    assert line.startswith(f"config.oracle.function={name!r}: ") and "\n" not in line
    return error.value


@pytest.mark.parametrize("case", CODES)
def test_what_cannot_be_loaded(write, tmp_path, case):
    code, name, said = CODES[case]
    name = write(code, name)
    error = refused(name, lambda: function.load(name))
    assert said in str(error).replace(f"{tmp_path}/", "")
    assert (error.__cause__ is None) == (case not in ("raises", "exits", "syntax", "imports", "asserts"))


def test_a_missing_file_or_module(tmp_path, monkeypatch, write):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    write("import no_such_module\n", file="broken_rules.py")
    for name, said in (
        (f"{tmp_path}/no.py:score", f"{tmp_path}/no.py: No such file or directory; valid is a Python file"),
        (
            "no_such_module:score",
            "no module 'no_such_module'; valid is a module that Python finds, or a file that",
        ),
        ("sea_jax.no_such:score", "no module 'sea_jax.no_such'; valid is"),
        (
            "broken_rules:f",
            f"{tmp_path}/broken_rules.py:1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ):
        with pytest.raises(InputError) as error:
            function.load(name)
        assert str(error.value).startswith(f"config.oracle.function={name!r}: {said}")


ROWS = "prompts[1]='x1', responses[1]='bbbb'"
PAIR = "prompts[1]='x1', first[1]='bbbb', second[1]='b'"
ANSWERS = {
    "nothing": ("score", "None", "returned None; valid is a list or array of 3 values, one per prompt"),
    "a number": ("score", "1.5", "returned 1.5, of type float; valid is a list or array of 3 values"),
    "an array of no axis": ("score", "__import__('numpy').array(2)", "returned 2, of type int; valid is a list"),
    "a text": ("score", "'abc'", "returned 'abc', of type str; valid is a list or array"),
    "a dict": ("score", "dict.fromkeys(prompts, 0)", "of type dict; valid is a list or array"),
    "a generator": ("score", "(0 for _ in prompts)", "of type generator; valid is a list or array"),
    "one too few": ("score", "[0] * (len(prompts) - 1)", "returned 2 values; valid is 3, one per prompt"),
    "one too many": ("prefer", "[0] * 4", "returned 4 values; valid is 3, one per prompt"),
    "nan": ("score", "[0, float('nan'), 0]", f"row 1: nan; valid is a finite number (float32); {ROWS}"),
    "infinite": ("score", "[0, -float('inf'), 0]", f"row 1: -inf; valid is a finite number (float32); {ROWS}"),
    "too large": ("score", "[0, 1e39, 0]", f"row 1: 1e+39; valid is a finite number (float32); {ROWS}"),
    "no reward": ("score", "[0, None, 0]", f"row 1: None; valid is a finite number (float32); {ROWS}"),
    "a word": ("score", "[0, '1.5', 0]", f"row 1: '1.5', of type str; valid is a finite number (float32); {ROWS}"),
    "a column": ("score", "[[0], [1], [2]]", "row 0: [0], of type list; valid is a finite number"),
    "an array": ("score", "__import__('numpy').zeros((3, 1))", "row 0: [0.0], of type list; valid is a finite"),
    "arrays": ("score", "[*__import__('numpy').zeros((3, 1))]", "row 0: array([0.]), of type ndarray; valid is"),
    "complex": ("score", "[1j] * 3", "row 0: 1j, of type complex; valid is a finite number"),
    "above 1": ("prefer", "[0, 1.5, 0]", f"row 1: 1.5; valid is a number in [0, 1], or None for no answer; {PAIR}"),
    "below 0": ("prefer", "[0, -1e-9, 0]", f"row 1: -1e-09; valid is a number in [0, 1], or None for no answer; {PAIR}"),
    "nan for none": ("prefer", "[0, float('nan'), 0]", "row 1: nan; valid is a number in [0, 1], or None for no"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_wrong_answers(write, case):
    form, text, said = ANSWERS[case]
    name = write(returning(text, form), "f")

    def ask():
        if form == "prefer":
            return protocol.compare(oracle(name), *TEXTS)
        return oracle(name).rewards(*TEXTS[:2])

    assert said in str(refused(name, ask))


def test_long_texts_are_cut_in_errors(write):
    with pytest.raises(InputError) as error:
        oracle(write(returning("[float('nan')]"), "f")).rewards(["line\n" * 100], ["word " * 100])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 and "…'" in str(error.value)


def test_an_exception_keeps_its_traceback_and_names_the_users_line(write, tmp_path):
    """The line of theirs that the error came through, not the library's that raised it."""
    code = "import json\n\ndef score(prompts, responses):\n    return inner(responses)\n\n"
    code += "def inner(responses):\n    return [json.loads(y) for y in responses]\n"
    with pytest.raises(InputError) as error:
        oracle(write(code)).rewards(["x"], ["no\nJSON"])
    place = f"{tmp_path}/rules.py:7: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    row = r"read last: row 0: prompts[0]='x', responses[0]='no\nJSON'"
    assert str(error.value).endswith(f"': {place}; {row}")
    assert isinstance(error.value.__cause__, json.JSONDecodeError) and error.value.__cause__.__traceback__


RAISING = {
    "a loop": ("[1 / (len(y) - 4) for y in responses]", 1),
    "two columns": ("[1 / (len(y) - 4) for x, y in zip(prompts, responses)]", 1),
    "by number": ("[1 / (len(responses[i]) - 4) for i in range(3)]", 1),
    "the last": ("[1 / (len(y) - 2) for y in responses]", 2),
    "after another loop": ("[1 / (len(y) - 4) for n in [max(map(len, prompts))] for y in responses]", 1),
    "none read": ("1 / 0", None),
    "all read": ("sorted(responses) and 1 / 0", None),
    "a copy": ("[1 / (len(y) - 4) for y in list(responses)]", None),
}


@pytest.mark.parametrize("case", RAISING)
def test_an_exception_names_the_row_that_was_read(write, case):
    """Where a loop over the texts had come to one; nothing is called a second time to find it."""
    text, row = RAISING[case]
    name = write("calls = []\n" + returning(f"calls.append(1) or {text}").replace("f(prompts)", "f"), "f")
    error = refused(name, lambda: oracle(name).rewards(*TEXTS[:2]))
    texts = f"; read last: row {row}: prompts[{row}]='x{row}', responses[{row}]={TEXTS[1][row or 0]!r}"
    assert str(error).endswith("ZeroDivisionError: division by zero" + ("" if row is None else texts))
    assert sys.modules["sea_jax_oracle_rules"].calls == [1]


def test_a_given_function_is_known_while_its_context_lasts():
    """By module, name and a hash; of the form that the caller names."""
    with function.given(lambda prompts, responses: [1.0 for _ in prompts], "score") as name:
        assert re.fullmatch(rf"{__name__}\.test_a_given_function\S+<lambda>@[0-9a-f]{{12}}", name)
        found = function.load(name)
        assert (found.form, found.file, found.shown) == ("score", __file__, f"score={name}")
        assert oracle(name).rewards(*TEXTS[:2]).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=r"valid is <file>\.py:<function> or <package\.module>:<function>"):
        function.load(name)
    for value, said in (
        (lambda x, y: 0, f"score: {__name__}.<lambda>(x, y); valid is a function f(prompts, responses)"),
        (3, "score: 3, of type int; valid is a function f(prompts, responses)"),
    ):
        with pytest.raises(InputError) as error, function.given(value, "score"):
            pass
        assert str(error.value).replace(f"{sys._getframe().f_code.co_qualname}.<locals>.", "") == said


def on_quickstart(**fields):
    config = quickstart.get_config()
    config.update_from_flattened_dict({"oracle.kind": "function"} | fields)
    return validate.check(config).problems


def test_mistakes_in_the_config(write):
    scores, prefers = write(LENGTHS), write(SHORTER, "prefer", "pairs.py")
    assert on_quickstart(**{"oracle.function": scores}) == []
    assert on_quickstart(**{"oracle.function": prefers}) == []
    assert on_quickstart(**{"oracle.function": scores, "methods": ("perfect_rl",)}) == []
    for fields, said in (
        ({}, "config.oracle.function='': valid is <file>.py:<function> or"),
        ({"oracle.function": scores + "s"}, f"config.oracle.function='{scores}s': "),
        (
            {"oracle.function": scores, "oracle.kind": "task"},
            f"config.oracle.function={scores!r}: valid is ''",
        ),
        (
            {"oracle.function": scores, "ray.oracles": 1},
            "config.ray.oracles=1: valid is 0 with oracle.kind='function'",
        ),
        (
            {"oracle.function": prefers, "methods": ("perfect_rl",)},
            "config.methods='perfect_rl': valid with an oracle that has rewards, not a function that compares",
        ),
    ):
        (problem,) = on_quickstart(**fields)
        assert problem.startswith(said)


@pytest.mark.parametrize("form", ["score", "prefer"])
def test_it_is_tried_on_two_texts_of_the_task(write, tmp_path, form):
    task = small_run(tmp_path, "passive").assets.task
    values = f"open({str(tmp_path / 'seen')!r}, 'a').write(repr([*zip({', '.join(function.FORMS[form])})]))"
    name = write(
        f"def f({', '.join(function.FORMS[form])}):\n    {values}\n    return [2] * len(prompts)\n", "f"
    )
    said = "row 0: 2.0; valid is a number in [0, 1], or None"
    if form == "prefer":
        with pytest.raises(InputError, match=re.escape(said)):
            make_function_oracle(name, compute_locally, task)
    else:
        make_function_oracle(name, compute_locally, task)
    prompts, (one, two) = task.prompts["train"], task.references["train"][:2]
    pairs = [(prompts[0], one, two), (prompts[1], two, one)]
    scored = repr([pair[:2] for pair in pairs]) + repr([pair[::2] for pair in pairs])
    assert (tmp_path / "seen").read_text() == (repr(pairs) if form == "prefer" else scored)


def test_a_run_with_a_function_to_its_report(write, tmp_path):
    """On texts, with the methods that read rewards; the reward that is logged is the function's."""
    config = user_files(tmp_path)
    config.methods = ("sea", "ceiling")
    config.oracle.update(dict(kind="function", function=write(LENGTHS)))
    config.eval.best_of = 2
    said = experiment.run(config, str(tmp_path / "run"))
    assert "\nSEA " in said
    rows = (tmp_path / "run/runs/sea-seed0/metrics.jsonl").read_text().splitlines()
    logged = {name: value for row in rows for name, value in json.loads(row).items()}
    assert logged["queries"] == 8 and logged["oracle/dropped"] == 0
    assert logged["eval/reward"] > 0 and logged["eval/best_of_reward"] > 0
    samples = (tmp_path / "run/runs/ceiling-seed0/samples.jsonl").read_text().splitlines()
    bought = [row for row in map(json.loads, samples) if row["labelled_by"] == "oracle"]
    assert bought and all(len(row["chosen"]) >= len(row["rejected"]) for row in bought)


def test_a_run_with_unanswered_duels(write, tmp_path):
    fields = {"oracle.kind": "function", "oracle.function": write(SHORTER, "prefer")}
    rows, samples = loop(run := small_run(tmp_path, "passive", **fields))
    dropped = [row["oracle/dropped"] for row in rows if "oracle/dropped" in row]
    assert run.labeller.num_queries == 16 and dropped[-1] == run.labeller.num_dropped
    for row in samples:
        assert row["weight"] == 0 or len(row["chosen"]) < len(row["rejected"])


def test_only_broadcast_calls_it(write):
    """Processes that are not the main one get the answer without a call; test_from_main.py has two of them."""
    elsewhere = lambda compute, like: like + 0.5  # noqa: E731
    scores, prefers = (
        function.load(write("x = 1\n" + returning("1 / 0", form), "f")) for form in function.FORMS
    )
    assert function.make_oracle(scores, elsewhere).rewards(*TEXTS[:2]).tolist() == [0.5] * 3
    assert (
        protocol.compare(function.make_oracle(prefers, elsewhere), *TEXTS).probability.tolist() == [0.5] * 3
    )


GUIDE = (ROOT / "docs/guides/oracles.md").read_text()
BLOCKS = re.findall(r"<!-- test: function -->\n\n```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guides_example(write):
    """Its functions, from the file that it says they are in."""
    assert len(BLOCKS) == GUIDE.count("```python") == 2 and len(BLOCKS[0].splitlines()) <= 10
    scores = oracle(write(BLOCKS[0], file="my_rules.py"))
    prompt, near, far = "the cat sat on the mat", "the cat sat", "dogs are running here"
    first, second = scores.rewards([prompt, prompt], [near, far])
    assert first == 3 - 0.2 * 9 and second == pytest.approx(-0.2 * 8)
    answers = oracle(write(BLOCKS[1], "prefer", "my_rules.py")).answers(*TEXTS)
    assert answers.answered.tolist() == [True, True, False] and answers.probability[:2].tolist() == [1, 0]
    for command in re.findall(r"--config.oracle.function=(\S+)", GUIDE):
        assert command in ("my_rules.py:score", "my_rules.py:prefer")
