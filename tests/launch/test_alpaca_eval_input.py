"""What `launch.alpaca_eval` refuses: each mistake is one line, and nothing is written."""

import json

import pytest
from alpaca_calls import SHORT, read, refused, write

from launch import alpaca_files

ROW = dict(instruction="x", output_1="a", output_2="b", generator_1="g", generator_2="h", preference=1.5)
WRONG = {  # name -> what replaces the file, what is said
    "absent": (None, "no such file"),
    "not JSON": ("[", "not JSON ("),
    "no list": ('{"a": 1}', "holds {'a': 1}; valid is a JSON list of objects with instruction"),
    "nested": ("[" * 100_000, "not JSON ("),
    "no object": ("[3]", "row 0: 3 is no object; valid is a JSON list of objects with instruction"),
    "no instruction": ('[{"a": 1}]', "row 0: instruction=None; valid is a text"),
}
PROMPTS = WRONG | {
    "none": ("[]", "no prompt; valid is a list with at least one"),
    "empty": ('[{"instruction": " "}]', "row 0: instruction=' '; valid is a text that is not empty"),
    "twice": (
        '[{"instruction": "x"}, {"instruction": "x"}]',
        "row 1: instruction='x' is that of row 0; valid is each",
    ),
    "long": (
        json.dumps([dict(instruction="x " * 99)]),
        "row 0: instruction of 198 tokens; valid is at most 90 tokens",
    ),
}
ANNOTATIONS = WRONG | {
    "text": (json.dumps([ROW | {"preference": "m"}]), "row 0: preference='m'; valid is a number from 1 (output_1"),
    "outside": (json.dumps([ROW, ROW | {"preference": 2.5}]), "row 1: preference=2.5; valid is a number from 1"),
    "truth": (json.dumps([ROW | {"preference": True}]), "row 0: preference=True; valid is a number"),
    "models": (json.dumps([ROW, ROW | {"generator_2": "i"}]), "row 1: generator_2='i'; valid is 'h', as in row 0"),
    "few": (json.dumps([ROW] * 4), "annotations: 4 with a preference; valid is at least 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_that_cannot_be_read(alpaca, tmp_path, capsys, case):
    content, said = PROMPTS[case]
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    line = refused(capsys, alpaca / "policy", f"--prompts={file}", f"--output={tmp_path}/o.json", *SHORT)
    named = "--prompts" if case == "long" else str(file)
    assert line.startswith(named) and said.lower() in line.lower()


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_annotations_that_cannot_be_read(tmp_path, capsys, case):
    content, said = ANNOTATIONS[case]
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    line = refused(capsys, f"--annotations={file}")
    assert line.startswith("annotations" if case == "few" else str(file)) and said.lower() in line.lower()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(generator="other"), "row 1: generator='other'; valid is "),
        (dict(temperature=1.0), "row 0: temperature=1.0; valid is 0.9, or another --output"),
        (dict(seed=None), "row 0: seed=None; valid is 0, or another --output"),
        (dict(policy="sha256:0"), "row 0: policy='sha256:0'; valid is 'sha256:"),
        (dict(output=3), "row 0: output=3; valid is a text"),
        (
            dict(instruction="what?"),
            "row 0: instruction='what?'; valid is one of --prompts, or another --output",
        ),
    ],
)
def test_outputs_of_something_else_stay_as_they_are(alpaca, whole, tmp_path, capsys, changed, said):
    changed_row = 1 if "generator" in changed else 0
    rows = [row | changed if at == changed_row else row for at, row in enumerate(whole)]
    file = write(tmp_path / "out.json", rows)
    line = refused(capsys, alpaca / "policy", f"--prompts={alpaca}/prompts.json", f"--output={file}", *SHORT)
    assert line.startswith(f"{file}, {said}") and read(file) == rows


JUDGE = ("--references=r.json", "--judge_url=http://x/v1", "--judge_model=m")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "policy, --annotations: neither given; valid is a policy, or annotations to score"),
        (("p", "--annotations=a.json"), "policy, --annotations: both given; valid is"),
        (("p",), "--prompts: absent; valid is a JSON list of objects with instruction"),
        (("p", "--prompts=x", *JUDGE[:1]), "--judge_url: absent; valid with --references is --judge_url and --judge_model too"),
        (("p", "--prompts=x", *JUDGE[1:]), "--references: absent; valid with --judge_url is --references too"),
        (("p", "--prompts=x", "--difficulty=d"), "--difficulty=d: valid with a judge, or with --annotations"),
        (("p", "--prompts=x", *JUDGE, "--judge_url=http://me:pass@x/v1"), "--judge_url='http://[credentials]@x/v1': valid is http"),
        (("p", "--prompts=x", "--limit=-1"), "--limit=-1: valid is at least 0"),
        (("p", "--prompts=x", "--max_new_tokens=0"), "--max_new_tokens=0: valid is at least 1"),
        (("p", "--prompts=x", "--temperature=nan"), "--temperature=nan: valid is a number of at least 0"),
        (("p", "--prompts=x", "--seed=a"), "argument --seed: invalid int value: 'a'"),
        (("p", "--prompts=x", "--dtype=f"), "argument --dtype: invalid choice: 'f'"),
        (("p", "--prompts=x", "--batch=2"), "unrecognized arguments: --batch=2"),
        (("--annotations=a", "--limit=2"), "--limit=2: valid with a policy, not with --annotations"),
        (("--annotations=a", "--difficulty=d"), "a: No such file or directory; valid is a JSON list"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_work(capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments).startswith(said) and not [*tmp_path.iterdir()]


def test_policies_and_places_that_cannot_be_used(alpaca, whole, tmp_path, capsys):
    prompts, file = f"--prompts={alpaca}/prompts.json", tmp_path / "o.json"
    line = refused(capsys, alpaca / "reward", prompts, f"--output={file}", *SHORT)
    assert "RewardModel; valid is a language model" in line
    line = refused(capsys, alpaca / "policy", prompts, f"--output={file}", "--max_new_tokens=96")
    assert "tokens; valid is at most 0 tokens, the policy's 96 less --max_new_tokens=96" in line
    (tmp_path / "file").touch()
    line = refused(capsys, alpaca / "policy", prompts, f"--output={tmp_path}/file/o.json", *SHORT)
    assert line.startswith(f"--output={tmp_path}/file/o.json: ") and line.endswith(
        "valid is a file that can be written"
    )
    with alpaca_files.owned("--output", file):
        line = refused(capsys, alpaca / "policy", prompts, f"--output={file}", *SHORT)
    assert line == f"--output={file}: another process writes it; valid is another file, or wait for its end"
