"""Makes the config of one run from a few arguments, and runs it: all else is `experiment.run`."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sea_jax.config.overrides import with_fields
from sea_jax.errors import InputError, StoppedError
from sea_jax.experiment import run as experiment
from sea_jax.experiment import validate
from sea_jax.labels import journal, reading
from sea_jax.notebook import settings
from sea_jax.notebook.result import AlignedRun
from sea_jax.oracles import function
from sea_jax.runtime.process import prepare_jax
from sea_jax.runtime.run_folder import run_folder
from sea_jax.types import Config

# Config field -> the argument that sets it.
_ARGUMENTS = {
    "policy.folder": "policy", "task.path": "prompts", "train.query_budget": "budget", "methods": "method",
    "train.dap": "loss", "seed": "seed", "num_seeds": "seed, in a call for each", "progress": "progress",
    "oracle.kind": "prefer or score", "oracle.function": "prefer or score",
}  # fmt: skip
_RUNS = Path("runs")  # where fresh work directories are made


def align(
    policy: str | os.PathLike = "",
    prompts: Sequence[str] | None = None,
    *,
    prefer: Callable[..., Any] | str | None = None,
    score: Callable[..., Any] | str | None = None,
    budget: int = 200,
    method: str = "sea",
    loss: str = "dpo",
    references: Sequence[str] | None = None,
    workdir: str | os.PathLike | None = None,
    seed: int = 0,
    fields: Mapping[str, Any] | None = None,
    config: Config | None = None,
    progress: bool = True,
) -> AlignedRun:
    """Aligns a language model with a Python function that judges responses.

    It makes a config, and leaves the work directory that `python -m sea_jax.main` leaves. The same call on
    the same work directory goes on with a run that was stopped, and returns one that has finished; a larger
    budget goes on with that.

    Args:
        policy: folder or hub name in Hugging Face's layout; '': a small model, trained here on the miniature.
        prompts: at least 5 different texts; a fifth of them, at most 64, is held out for evaluation, and as
            many to measure the posterior. None: those of the miniature, or of `config`.
        prefer: f(prompts, first, second) -> B probabilities that the first response is better, None for no
            answer; a function, or its name as in config.oracle.function.
        score: f(prompts, responses) -> B rewards; one of both is given.
        budget: comparisons of two responses that the method may ask for; those of evaluations come on top.
        method: a row of docs/methods.md.
        loss: 'dpo', 'ipo', 'slic' or 'simpo'.
        references: a good response to each prompt, which the policy is compared with; None: there are none.
        workdir: folder of the run; None: a fresh one in runs/, with trained parts in runs/cache.
        seed: of the run.
        fields: other values of config fields, by name, as {'train.learning_rate': 1e-4}.
        config: settings to begin from in place of those chosen here, as a config file's get_config() returns.
        progress: show progress bars.

    Returns:
        The run, with its report, figure, labels and policy.

    Raises:
        InputError: an argument cannot work, the function fails, or the work directory holds another run; one
            line that names it, its value and the valid values.
        StoppedError: by Ctrl-C, after the run was saved.
    """
    with _in_arguments(), _function(prefer, score) as name:
        _check_kinds(policy, budget, method, workdir, fields, config)
        given = settings.Prompts.of(prompts, references)
        made = _config(os.fspath(policy), given, budget, method, config)
        own = {"train.dap": loss, "seed": seed, "progress": progress}
        own |= {"oracle.kind": "function", "oracle.function": name}
        made = with_fields(made, own | _checked(fields or {}, made))
        validate.validate_parts(made)
        folder = _workdir(workdir, made)
        if given is not None:
            made.task.path = given.write(folder)
        return _run(made, folder)


def _check_kinds(policy: Any, budget: Any, method: Any, workdir: Any, fields: Any, config: Any) -> None:
    """Raises InputError at the first argument of another kind than a config can be made of."""
    path = (str, os.PathLike)
    kinds = {
        "policy": (policy, path, "a folder or a hub name"),
        "budget": (budget, int, "a whole number of at least 1"),
        "method": (method, str, "the name of one method"),
        "workdir": (workdir, (*path, type(None)), "a folder, or None for a fresh one"),
        "fields": (fields, (Mapping, type(None)), "a dict, as {'train.learning_rate': 1e-4}"),
        "config": (config, (ConfigDict, type(None)), "what a config file's get_config() returns"),
    }
    for name, (value, kind, valid) in kinds.items():
        if not isinstance(value, kind):
            raise InputError(f"{name}={settings.shown(value)}: valid is {valid}")


def _config(
    folder: str, prompts: settings.Prompts | None, budget: int, method: str, config: Config | None
) -> Config:
    """Returns the config of what is run; values are checked later, with all others."""
    if config is None and bool(folder) != (prompts is not None):
        found = f"policy={folder!r}, prompts={'None' if prompts is None else 'texts'}"
        raise InputError(f"{found}: valid is both, or neither for the miniature")
    if prompts is not None:
        made = settings.on_prompts(config, folder, prompts)
    else:
        made = settings.on_miniature() if config is None else config
    made = settings.of_method(made, method)
    own = {"methods": (method,), "num_seeds": 1, "train.query_budget": budget}
    return with_fields(made, own | ({"policy.folder": folder} if folder else {}))


@contextlib.contextmanager
def _function(prefer: Any, score: Any) -> Iterator[str]:
    """Lets the oracle ask the function that was given, while the context lasts; returns its name."""
    given = {form: call for form, call in dict(prefer=prefer, score=score).items() if call is not None}
    if len(given) != 1:
        found = "both" if given else "neither"
        valid = "one: prefer=f(prompts, first, second) or score=f(prompts, responses)"
        raise InputError(f"prefer, score: {found} given; valid is {valid}")
    [(form, call)] = given.items()
    if not isinstance(call, str):
        with function.given(call, form) as name:
            yield name
        return
    if (found := function.load(call).form) != form:
        raise InputError(f"{form}={call!r}: a function of form {found}; valid is {found}={call!r}")
    yield call


def _checked(fields: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Returns fields by their names without 'config.'; refuses those that arguments set, and sections."""
    named = {str(name).removeprefix("config."): value for name, value in fields.items()}
    for name, value in named.items():
        at = f"fields[{name!r}]={settings.shown(value)}"
        if name in _ARGUMENTS:
            raise InputError(f"{at}: valid is the argument {_ARGUMENTS[name]}")
        if isinstance(config.get(name), ConfigDict):
            raise InputError(
                f"{at}: a section; valid are its fields, as '{name}.{min(config[name], default='')}'"
            )
    return named


def _workdir(given: str | os.PathLike | None, config: Config) -> Path:
    """Returns the work directory; makes a fresh one, whose parts others use too, where none is given."""
    if given is not None:
        folder = Path(given)
        _check_budget(run_folder(folder, config.methods[0], config.seed), config.train.query_budget)
        return folder
    config.cache_dir = config.cache_dir or str(_RUNS / "cache")
    name, number = f"align-{time.strftime('%Y%m%d-%H%M%S')}", 1
    while True:
        folder = _RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"workdir: {folder}: {error.strerror}; valid: one that can be written") from None


def _check_budget(folder: Path, budget: int) -> None:
    """Refuses a budget that the run of a folder has spent already, as its results would be those of more."""
    file = folder / journal.FILE
    found = reading.summary(file) if file.exists() else None
    if found is not None and (bought := found.labels - found.imported) > budget:
        valid = f"at least {bought}, the labels of the run in {folder}, or another workdir"
        raise InputError(f"budget={budget}: valid is {valid}")


def _run(config: Config, folder: Path) -> AlignedRun:
    """Runs a config, in a process that may have used JAX before and may have a cache of programs."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        prepare_jax(config, str(folder))
    if config.progress:
        print(f"work directory: {folder}", file=sys.stderr)
    try:
        report = experiment.run(config, str(folder), extend=True)
    except StoppedError as stop:
        raise StoppedError(f"{stop}; here: the same call with workdir={str(folder)!r}") from None
    return AlignedRun(config, folder, report)


@contextlib.contextmanager
def _in_arguments() -> Iterator[None]:
    """Names arguments in place of the config fields and flags that an InputError is about."""
    try:
        yield
    except InputError as error:
        raise InputError(*map(_in_words, error.problems)) from error.__cause__


def _in_words(problem: str) -> str:
    place, equals, rest = problem.partition("=")
    name = _ARGUMENTS.get(place.removeprefix("config."))
    place = name if equals and place.startswith("config.") and name and " " not in name else place
    said = f"{place}{equals}{rest}".removeprefix("--")
    return said.replace("another --workdir", "another workdir")
