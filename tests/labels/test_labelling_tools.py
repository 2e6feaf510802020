"""Exported questions and answers in Argilla's and Label Studio's own code (`make test ARGS='-m labelling'`)."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

from launch import environments
from sea_jax.labels import question_files as files
from sea_jax.labels.desk import Desk
from sea_jax.labels.questions import Question

pytestmark = pytest.mark.labelling
REQUIREMENTS = ["argilla==2.8.0", "label-studio-sdk==2.1.2"]
TEXTS = [
    "plain",
    'with "quotes", commas\nand lines',
    "ünïcode \N{SNOWMAN} \u2028",
    "<b>bold</b>",
    " spaces ",
    "\\n",
]


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_a_round_trip_through_the_tools_code(tmp_path, tool):
    python = environments.ensure("labelling", REQUIREMENTS)
    guide = (ROOT / "docs/guides/people.md").read_text()
    interface = [re.search(r"```xml\n(.*?)```", guide, re.DOTALL)[1]] if tool == "label-studio" else []
    with Desk(tmp_path) as desk:
        desk.offer("run", [Question(i, f"{x} {i}", f"{x} first", f"{x} second") for i, x in enumerate(TEXTS)])
        with open(tmp_path / "questions.json", "w", encoding="utf-8") as file:
            files.write(desk.asked(only_open=True), tool, file)
        worker = Path(__file__).with_name("labelling_tools.py")
        call = [python, worker, tool, tmp_path / "questions.json", tmp_path / "answers.json", *interface]
        done = subprocess.run(call, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        answers = files.read(tmp_path / "answers.json")
        assert [answer.choice for answer in answers] == ["1", "2", "tie", "both_bad", "skip", "1"]
        asked = {question.id: question for question in desk.asked()}
        assert desk.add(files.verdicts(answers, asked)) == (6, 0)
        assert desk.counts()[:3] == (0, 6, 5)
        name = (
            "1"
            if tool == "label-studio"
            else json.loads((tmp_path / "answers.json").read_text())[0]["responses"]["choice"][0]["user_id"]
        )
        assert {annotator for _, annotator, _ in desk.votes()} == {name}
