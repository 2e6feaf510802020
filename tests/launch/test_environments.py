"""Separate environments: when one is made, when it is kept, and which arguments are refused."""

import subprocess
import sys

import pytest

from launch import environments


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "peers")
    return tmp_path / "peers"


@pytest.fixture
def installed(monkeypatch):
    """Returns the recorded calls of pip; no package is installed, not even pip by `venv`."""
    calls = []
    create = environments.venv.create
    monkeypatch.setattr(environments.venv, "create", lambda *a, **kw: create(*a, **kw | {"with_pip": False}))
    monkeypatch.setattr(
        environments, "_pip_install", lambda name, python, requirements: calls.append(requirements)
    )
    return calls


def test_an_environment_is_made_once_for_a_list_and_anew_for_another(folder, installed, capfd):
    python = environments.ensure("x", ["a==1", "b[c]==2"])
    version = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert version.stdout.strip() == str(folder / "x") != sys.prefix
    assert (folder / ".gitignore").read_text() == "*\n"
    (folder / "x/kept").touch()
    assert environments.ensure("x", ["a==1", "b[c]==2"]) == python and (folder / "x/kept").exists()
    environments.ensure("x", ["a==2"])
    assert not (folder / "x/kept").exists() and installed == [["a==1", "b[c]==2"], ["a==2"]]
    assert capfd.readouterr().err.count("making the environment 'x'") == 2


def test_an_interrupted_installation_is_repeated(folder, installed, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(environments, "_pip_install", interrupted)
        environments.ensure("x", ["a==1"])
    environments.ensure("x", ["a==1"])
    assert installed == [["a==1"]]


@pytest.mark.parametrize(
    ("name", "requirements", "said"),
    [
        ("../x", ["a==1"], "environment name: '../x'; valid: letters"),
        ("", ["a==1"], "environment name: ''"),
        ("x", [], "requirements of environment 'x': none given; valid: 'package==version' each"),
        ("x", ["a==1", "b>=2", "c"], r"requirements of environment 'x': \['b>=2', 'c'\]"),
        ("x", ["a==1.*"], r"\['a==1\.\*'\]"),
    ],
)
def test_mistakes(folder, installed, name, requirements, said):
    with pytest.raises(ValueError, match=said):
        environments.ensure(name, requirements)
    assert not installed and not folder.exists()


def test_why_pip_failed_is_one_line(tmp_path):
    """A program that prints a few lines and fails replaces pip."""
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho WARNING: old; echo 'ERROR: no such version'; echo 'see above'; exit 1\n")
    pip.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"^environment 'x': pip install failed: ERROR: no such version$"):
        environments._pip_install("x", pip, ["a==1"])


def test_requirements_of_launch_take_precedence():
    pins = environments.launch_requirements()
    names = [pin.partition("==")[0] for pin in pins]
    assert len(set(names)) == len(names) and {"jax", "xmanager", "tenacity"} <= set(names)
    assert "protobuf==6.33.6" in pins
    assert "jax[cuda13]==0.10.2" in environments.own_requirements("cuda")
