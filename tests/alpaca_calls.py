"""Calls of `launch.alpaca_eval` in this process."""

import json

import pytest

from launch import alpaca_eval

ASKED = [f"Question {i}: what about the red ball{' again' * (i % 3)}?" for i in range(7)]
SHORT = ("--max_new_tokens=6", "--batch_size=3")


def write(file, rows):
    file.write_text(json.dumps(rows))
    return file


def read(file):
    return json.loads(file.read_text())


def call(*arguments):
    alpaca_eval.main([str(argument) for argument in arguments])


def outputs(alpaca, file, *more):
    call(alpaca / "policy", f"--prompts={alpaca}/prompts.json", f"--output={file}", *SHORT, *more)
    return read(file)


def refused(capsys, *arguments):
    """The one line that a call ends with."""
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said.removeprefix("error: ").rstrip("\n")
