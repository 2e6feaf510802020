"""The code's shape and prose: lengths of functions and files, and docstrings that begin with a verb."""

import ast
import re
import statistics

import pytest
from helpers import ROOT

FILES = sorted((ROOT / "sea_jax").rglob("*.py"))
# Verbs in the third person, as "Returns"; words that only look like one are left out.
VERB = re.compile(
    r"(?!(?:As|Of|This|Its|Is|Has|Was|Sets of|Pairs|Rewards|Rows|Metrics|Labels|Weights)\b)[A-Z][a-z]+s\b"
)
NOUN_PHRASE = re.compile(r"(?:What|Of|As|Whether|Where|Those|How|In|With|From|By|Who|When|Which|It|That)\b")


def functions(file):
    tree = ast.parse(file.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def documented(file, kinds):
    tree = ast.parse(file.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(getattr(node, "name", "module"), ast.get_docstring(node)) for node in nodes]


def is_property(node):
    return any(
        getattr(mark, "attr", getattr(mark, "id", "")) in ("property", "cached_property")
        for mark in node.decorator_list
    )


def test_functions_are_short():
    lengths = [node.end_lineno - node.lineno + 1 for file in FILES for node in functions(file)]
    assert statistics.median(lengths) <= 10 and max(lengths) <= 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_short(file):
    lines = file.read_text().count("\n")
    assert lines <= (250 if file.name == "train.py" else 350)


def test_the_step_of_algorithm_2_fits_a_page():
    """Lines 3 to 10 are quoted in order, in two functions of at most 40 lines that follow each other."""
    file = ROOT / "sea_jax/train.py"
    pose, learn = (node for node in functions(file) if node.name in ("pose", "learn"))
    assert pose.end_lineno == learn.lineno - 3
    lines = file.read_text().splitlines()[pose.lineno - 1 : learn.end_lineno]
    assert max(node.end_lineno - node.lineno for node in (pose, learn)) < 40
    quoted = [int(n) for line in lines for n in re.findall(r"^    # (\d+) +[A-Z]", line)]
    assert quoted == list(range(3, 11))


def test_a_functions_docstring_begins_with_a_verb():
    wrong = [
        f"{file.relative_to(ROOT)}:{node.name}: {text.splitlines()[0]}"
        for file in FILES for node in functions(file)
        if (text := ast.get_docstring(node)) and not is_property(node) and not VERB.match(text)
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_other_docstrings_begin_with_no_relative_clause():
    """Classes, properties and modules may be named by a noun."""
    wrong = [
        f"{file.relative_to(ROOT)}:{name}: {text.splitlines()[0]}"
        for file in FILES for name, text in documented(file, (ast.ClassDef, ast.Module, ast.FunctionDef))
        if text and NOUN_PHRASE.match(text)
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)
