"""Who may import whom, and that no file waits for itself."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

ALWAYS = {"credentials", "errors", "json_files", "types"}
ALLOWED = {  # room -> the rooms that it may import besides itself
    "models": {"hub"},
    "losses": {"models"},
    "tasks": {"hub"},
    "ensemble": {"models", "losses", "runtime"},
}
FILES = {
    ".".join(("sea_jax", *file.relative_to(ROOT / "sea_jax").with_suffix("").parts)).removesuffix(
        ".__init__"
    ): file
    for file in (ROOT / "sea_jax").rglob("*.py")
}


def imported(module, everywhere):
    """Modules of ours that a module imports: at its top, or everywhere."""
    tree = ast.parse(FILES[module].read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inside}
    return found & FILES.keys()


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room):
    for module in FILES:
        if module.split(".")[1:2] == [room]:
            rooms = {name.split(".")[1] for name in imported(module, everywhere=True) if name != "sea_jax"}
            assert rooms <= {room} | ALLOWED[room] | ALWAYS, module


def room(module):
    """The folder or root file of sea_jax that a module is in."""
    return module.split(".")[1] if "." in module else "sea_jax"


def between_files():
    return {module: imported(module, everywhere=False) - {module} for module in FILES}


def between_rooms():
    """Imports within functions included."""
    graph = {}
    for module in FILES:
        rooms = {room(name) for name in imported(module, everywhere=True)} - {room(module), "sea_jax"}
        graph.setdefault(room(module), set()).update(rooms)
    return graph


@pytest.mark.parametrize("graph", [between_files, between_rooms])
def test_no_circle(graph):
    graph, done, path = graph(), set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in sorted(graph.get(module, ())):
            visit(name)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


def test_nothing_imports_torch_where_it_is_installed(tmp_path):
    """All modules but the sidecar, and the writer of TensorBoard's files, which imports its library late."""
    modules = sorted(FILES.keys() - {"sea_jax.actors.vllm_sidecar"})
    code = f"""
import importlib, pathlib, sys
for name in {[name for name in modules if not name.endswith("__main__")]}:
    importlib.import_module(name)
importlib.import_module("sea_jax.runtime.metrics").MetricWriter(pathlib.Path({str(tmp_path)!r})).close()
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
import torch
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
