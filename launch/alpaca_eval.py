"""Writes a policy's outputs for AlpacaEval 2.0, has a judge compare them with a baseline's, and scores them.

    python -m launch.alpaca_eval runs/ultrafeedback/runs/sea-seed0/policy --prompts=alpaca_eval.json
    python -m launch.alpaca_eval runs/…/policy --prompts=alpaca_eval.json --references=alpaca_eval.json \\
        --judge_url=https://api.openai.com/v1 --judge_model=gpt-4-1106-preview --difficulty=df_gamed.csv
    python -m launch.alpaca_eval --annotations=annotations.json    # scores annotations that exist

The first writes `alpaca_eval/model_outputs.json` beside the policy, in the format of the package alpaca_eval.
The second also writes `alpaca_eval/<judge>/annotations.json`, and prints win rate and length-controlled win
rate. The same command goes on where an earlier call was stopped. The judge's key is the environment's
OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from launch import alpaca_files, alpaca_judge, alpaca_outputs, length_controlled
from launch.alpaca_files import Row
from sea_jax.config.flags import fail
from sea_jax.config.policy import DTYPES
from sea_jax.errors import InputError, ServiceError, StorageError
from sea_jax.oracles.access import require_plain_url
from sea_jax.oracles.judge import Judge
from sea_jax.oracles.remote import RequestLimits
from sea_jax.tasks.tokenizer import CHAT

_WITH_POLICY = ("output", "references", "name", "limit", "judge_url", "judge_model")


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line says; a mistake is one line on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        print(_evaluate(options) if options.policy else _score_file(options))
    except (InputError, ServiceError) as error:
        fail(error)
    except StorageError as error:
        fail(error, os.EX_IOERR)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends the process with one line; `--help` has the usage."""
        fail(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch.alpaca_eval", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("policy", nargs="?", help="folder or hub name in Hugging Face's layout")
    add("--prompts", type=Path, help="prompts, a JSON list of objects with instruction, or jsonl")
    add("--output", type=Path, help="outputs; default: alpaca_eval/model_outputs.json beside the policy")
    add("--name", help="generator of the outputs; default: the policy as it is named here")
    add("--temperature", type=float, default=0.9, help="0 is greedy; default: 0.9, the paper's (App. F.2)")
    add("--max_new_tokens", type=int, default=1024, help="of an output, with its EOS")
    add("--seed", type=int, default=0, help="of the outputs, and of the order in which the judge sees them")
    add("--limit", type=int, default=0, help="the first so many prompts; 0: all")
    add("--batch_size", type=int, default=8, help="prompts at once")
    add("--dtype", choices=DTYPES, default="float32", help="of the policy's activations")
    add("--chat", choices=CHAT, default="auto", help="use the tokenizer's chat template; auto: if it has one")
    add("--references", type=Path, help="outputs of the baseline, a file as --output; may be --prompts")
    add("--judge_url", default="", help="endpoint with OpenAI's chat completions and log-probs")
    add("--judge_model", default="", help="name of the judge at --judge_url")
    add("--in_flight", type=int, default=8, help="requests to the judge at once")
    add("--requests_per_minute", type=float, default=0.0, help="to the judge; 0: no limit")
    add("--annotations", type=Path, help="annotations to score, without a policy and a judge")
    add("--difficulty", type=Path, help="df_gamed.csv of the data set tatsu-lab/alpaca_eval")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises InputError at the first option that is not valid."""
    for name, least in (
        ("max_new_tokens", 1),
        ("seed", 0),
        ("limit", 0),
        ("batch_size", 1),
        ("in_flight", 1),
    ):
        if getattr(options, name) < least:
            raise InputError(f"--{name}={getattr(options, name)}: valid is at least {least}")
    for name in ("temperature", "requests_per_minute"):
        if not 0 <= getattr(options, name) < math.inf:
            raise InputError(f"--{name}={getattr(options, name)}: valid is a number of at least 0")
    if bool(options.policy) == bool(options.annotations):
        given = "both" if options.policy else "neither"
        raise InputError(f"policy, --annotations: {given} given; valid is a policy, or annotations to score")
    if options.policy:
        _check_judge(options)
    for name in _WITH_POLICY:
        if options.annotations and getattr(options, name):
            raise InputError(
                f"--{name}={getattr(options, name)}: valid with a policy, not with --annotations"
            )


def _check_judge(options: argparse.Namespace) -> None:
    """Requires prompts, and of the judge's options all or none."""
    if options.prompts is None:
        raise InputError("--prompts: absent; valid is a JSON list of objects with instruction")
    judge = dict(references=options.references, judge_url=options.judge_url, judge_model=options.judge_model)
    given = [name for name, value in judge.items() if value]
    if missing := [name for name in judge if given and name not in given]:
        raise InputError(
            f"--{missing[0]}: absent; valid with --{given[0]} is --{' and --'.join(missing)} too"
        )
    if options.difficulty and not given:
        raise InputError(f"--difficulty={options.difficulty}: valid with a judge, or with --annotations")
    if options.judge_url:
        require_plain_url("--judge_url", options.judge_url)


def _evaluate(options: argparse.Namespace) -> str:
    """Generates what is missing, has it judged where there is a judge, and says what came of it."""
    prompts = alpaca_files.read_prompts(options.prompts)
    limit = min(options.limit or len(prompts), len(prompts))
    references = alpaca_files.read_outputs(options.references) if options.references else []
    difficulty = _difficulty(options)
    name = options.name or os.path.normpath(options.policy)
    file = options.output or Path(options.policy).parent / "alpaca_eval" / "model_outputs.json"
    settings = alpaca_outputs.sampling(
        options.policy, options.temperature, options.max_new_tokens, options.seed, options.dtype, options.chat
    )
    with alpaca_files.owned("--output", file):
        done = alpaca_outputs.read_done(file, prompts, name, settings)
        annotator = _annotator(options, file)
        if annotator:
            _find_mistakes(annotator, prompts[:limit], references, options.references, done)
        outputs = alpaca_outputs.generate(
            options.policy, prompts, limit, file, name, settings, options.batch_size
        )
        lines = [_about_outputs(file, outputs)]
        if annotator:
            rows = alpaca_judge.comparisons(outputs, references, options.references, annotator.name)
            annotations = alpaca_judge.annotate(rows, annotator)
            lines += [_about_annotations(annotator, annotations), _scored(annotations, prompts, difficulty)]
    return "\n".join(lines)


def _annotator(options: argparse.Namespace, file: Path) -> alpaca_judge.Annotator | None:
    if not options.judge_url:
        return None
    limits = RequestLimits(in_flight=options.in_flight)
    judge = Judge(options.judge_url, options.judge_model, options.seed, limits, options.requests_per_minute)
    name = f"{options.judge_model} at {options.judge_url}, seed {options.seed}"
    folder = alpaca_judge.folder_of(file, options.judge_model)
    return alpaca_judge.Annotator(judge, name, folder / "annotations.json")


def _find_mistakes(
    annotator: alpaca_judge.Annotator, prompts: Sequence[Row], references: Sequence[Row], file: Path,
    done: dict[str, Row],
) -> None:  # fmt: skip
    """Finds a reference that is missing, and a judge that does not answer, before hours of generation."""
    placeholder = dict(output="", generator="")
    rows = [done.get(row["instruction"], row | placeholder) for row in prompts]
    pairs = alpaca_judge.comparisons(rows, references, file, annotator.name)
    if alpaca_judge.waiting(pairs, annotator.file):
        annotator.judge.check()


def _about_outputs(file: Path, outputs: Sequence[Row]) -> str:
    length = np.mean([len(row["output"]) for row in outputs])
    return f"{file}: {len(outputs)} outputs, {length:.0f} characters in the mean"


def _about_annotations(annotator: alpaca_judge.Annotator, rows: Sequence[Row]) -> str:
    answered = sum(row["preference"] is not None for row in rows)
    calls = annotator.judge.metrics()["oracle/calls"]
    return (
        f"{annotator.file}: {answered} of {len(rows)} comparisons answered, {calls:.0f} calls by this command"
    )


def _score_file(options: argparse.Namespace) -> str:
    """Scores annotations that exist; an instruction's place is that in --prompts, or else in the file."""
    rows = alpaca_files.read_annotations(options.annotations)
    prompts = alpaca_files.read_prompts(options.prompts) if options.prompts else rows
    return _scored(rows, prompts, _difficulty(options))


def _difficulty(options: argparse.Namespace) -> length_controlled.Difficulty | None:
    return length_controlled.read_difficulty(options.difficulty) if options.difficulty else None


def _scored(
    rows: Sequence[Row], prompts: Sequence[Row], difficulty: length_controlled.Difficulty | None
) -> str:
    """Returns the score in words.

    Args:
        rows: annotations.
        prompts: in the order that the difficulties are numbered by.
        difficulty: see `length_controlled.score`.
    """
    place = {row["instruction"]: at for at, row in enumerate(prompts)}
    unknown = [row["instruction"] for row in rows if row["instruction"] not in place]
    if unknown:
        raise InputError(f"annotations: instruction={unknown[0]!r:.60}; valid is one of --prompts")
    found = length_controlled.score(
        np.array([alpaca_files.share(row["preference"]) for row in rows]),
        np.array([len(row["output_2"]) for row in rows]),
        np.array([len(row["output_1"]) for row in rows]),
        [place[row["instruction"]] for row in rows],
        difficulty,
    )
    return (
        f"{rows[0]['generator_2']} against {rows[0]['generator_1']}, {len(rows)} instructions\n"
        f"win rate                    {found.win_rate:.2f} ± {found.standard_error:.2f} %\n"
        f"length-controlled win rate  {found.length_controlled:.2f} ± {found.length_controlled_error:.2f} %\n"
        f"{_kind(difficulty)}"
    )


def _kind(difficulty: length_controlled.Difficulty | None) -> str:
    """Says which of the package's models was fitted, and whether its number is the leaderboard's."""
    if difficulty is not None and difficulty.gamed is not None:
        return "length_controlled_v1, as on the leaderboard"
    name, lacks = "length_controlled_noreg", "annotations of gamed models"
    if difficulty is None:
        name, lacks = "length_controlled_minimal", "difficulties and gamed annotations"
    return f"{name}, not the leaderboard's number: without {lacks}; --difficulty=df_gamed.csv has them"


if __name__ == "__main__":
    main(sys.argv[1:])
