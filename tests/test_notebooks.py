"""Checks the notebooks as files; `make docs` executes them."""

import ast
import json
import re

import pytest
from helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def cells(file, kind):
    found = json.loads(file.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_the_site_has_them():
    """By a link, since Sphinx reads no page outside docs/."""
    assert NOTEBOOKS and (ROOT / "docs/notebooks").resolve() == ROOT / "notebooks"


@each
def test_there_are_no_outputs(file):
    """`jupyter nbconvert --clear-output --inplace` takes them out."""
    for cell in cells(file, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
        assert cell["metadata"].keys() <= {"tags"}, cell["id"]


@each
def test_format(file):
    notebook = json.loads(file.read_text())
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)


@each
def test_the_validator_of_jupyter_agrees(file):
    nbformat = pytest.importorskip("nbformat", reason="needs requirements-docs.txt")
    nbformat.validate(nbformat.read(file, as_version=4))


@each
def test_text_and_code_alternate(file):
    """A title first, and no cell of code that a reader must scroll."""
    first, *_ = json.loads(file.read_text())["cells"]
    assert first["cell_type"] == "markdown" and first["source"][0].startswith("# ")
    for cell in cells(file, "code"):
        assert len(cell["source"]) <= 40, cell["id"]
        ast.parse("".join(cell["source"]))
    for cell in cells(file, "markdown"):
        assert all(len(line.rstrip("\n")) <= 120 for line in cell["source"]), cell["id"]


@each
def test_code_defines_little(file):
    """What needs more than a short function is the package's."""
    tree = ast.parse("\n\n".join("".join(cell["source"]) for cell in cells(file, "code")))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all(node.end_lineno - node.lineno < 20 for node in functions)
