"""Checks of the methods that a config names: that they exist, and have what each of them needs."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from sea_jax import tasks
from sea_jax.config.checks import Checks, nearest
from sea_jax.config.fields import Section
from sea_jax.config.overrides import for_method
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.experiment.commands import COMMANDS
from sea_jax.methods import METHODS
from sea_jax.methods.method import posterior_kind, sea_responses
from sea_jax.oracles import function
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config


def pretrained_prior(config: Config, method: str) -> str | None:
    """Returns the kind of posterior of a method whose prior is pretrained with the backbone, else None."""
    own, row = for_method(config, method), METHODS[method]
    pretrained = row.learns_ensemble and own.ensemble.prior == "pretrained"
    return posterior_kind(own, row) if pretrained else None


def check_names(checks: Checks) -> None:
    """Requires rows of METHODS, and of each method the loss that it is derived from."""
    if not checks.sound("methods"):
        return
    for method in checks.config.methods:
        valid = f"one of {sorted(METHODS)}"
        if method in COMMANDS:
            valid += f"; {method} is a command: python -m sea_jax.main {method} --config=… --workdir=…"
        checks.require(method in METHODS, "methods", valid + nearest(method, METHODS), method)
    for method, own in _each(checks):
        losses = tuple(METHODS[method].losses)
        if own.sound("train.dap") and losses:
            valid = f"{' or '.join(map(repr, losses))} with methods={method!r}, which is derived for it"
            own.require(own.config.train.dap in losses, "train.dap", valid)


def check_methods(checks: Checks, sections: list[type[Section]]) -> None:
    """Requires what the methods need, and that the fields of each fit together.

    Args:
        checks: gets the problems.
        sections: that single methods may have otherwise.
    """
    check_names(checks)
    for method, own in _each(checks):
        if method in checks.config.get("overrides", {}):
            for section in sections:
                section.check(own)
        _check_proposals(own, method)
        _check_prior(own, method, checks.config)
    _check_oracle_scores(checks)
    _check_best_of(checks)


def _each(checks: Checks) -> Iterator[tuple[str, Checks]]:
    """Yields every method whose name and overrides are valid, with checks of its own config."""
    if not checks.sound("methods"):
        return
    for method in dict.fromkeys(checks.config.methods):
        if checks.sound("overrides", f"overrides.{method}") and _has_sections(checks, method):
            yield method, checks.of_method(for_method(checks.config, method), method)


def _has_sections(checks: Checks, method: str) -> bool:
    """Returns whether the config has the sections that a method's overrides are merged with."""
    given = checks.config.get("overrides", {}).get(method, {})
    return all(isinstance(checks.config.get(section), ConfigDict) for section in given)


def _check_proposals(checks: Checks, method: str) -> None:
    """Requires proposals of two responses or more, and room for the pairs of a step."""
    if METHODS[method].num_responses is sea_responses and checks.sound("sea.num_responses"):
        enough = checks.config.sea.num_responses >= 2
        checks.require(enough, "sea.num_responses", f"at least 2 with methods={method!r}")
    if METHODS[method].learns_ensemble and checks.sound("ensemble.capacity", "train.batch_size"):
        B = checks.config.train.batch_size
        valid = f"at least train.batch_size={B}, the pairs of a step, with methods={method!r}"
        checks.require(checks.config.ensemble.capacity >= B, "ensemble.capacity", valid)


def _check_prior(checks: Checks, method: str, shared: Config) -> None:
    """Requires that pretrained heads, where members are drawn from them, are enough and of the same shape."""
    names = "ensemble.kind", "ensemble.prior", "ensemble.hidden", "backbone.kind", "task.name"
    if not checks.sound(*names) or (kind := pretrained_prior(checks.config, method)) is None:
        return
    backbone, task = checks.config.backbone.kind, checks.config.task.name
    checks.require(backbone != "encoder", "ensemble.prior", "'random' with backbone.kind='encoder'")
    if backbone == "policy":  # a ranker's task has such a family, as its section checks
        valid = f"'random' with backbone.kind='policy' and task.name={task!r}, which has no family of rewards"
        checks.require(tasks.find(task).reward_family is not None, "ensemble.prior", valid)
    if kind != "mlp":
        return
    same = tuple(checks.config.ensemble.hidden) == tuple(shared.ensemble.hidden)
    valid = f"{shared.ensemble.hidden}, as all have with ensemble.prior='pretrained'"
    checks.require(same, "ensemble.hidden", valid)
    if checks.sound("ensemble.num_members", "prior_heads.num_heads"):
        heads = checks.config.prior_heads.num_heads
        valid = f"at most prior_heads.num_heads={heads} with ensemble.prior='pretrained'"
        checks.require(checks.config.ensemble.num_members <= heads, "ensemble.num_members", valid)


def _check_oracle_scores(checks: Checks) -> None:
    """Requires an oracle that has rewards where a method reads them."""
    if not checks.sound("methods", "oracle.kind", "oracle.function", "task.name"):
        return
    oracle = checks.config.oracle
    compares = oracle.kind == "function" and function.load(oracle.function).form == "prefer"
    people = oracle.kind in PEOPLE_KINDS and tasks.find(checks.config.task.name).reward_fn is None
    if oracle.kind != "judge" and not compares and not people:
        return
    other = "a function that compares two responses" if compares else "people" if people else "a judge"
    if checks.sound("eval.regret"):
        valid = f"False with {other}, which has no rewards"
        checks.require(not checks.config.eval.regret, "eval.regret", valid)
    for method in checks.config.methods:
        if METHODS[method].reads_oracle and checks.sound("methods"):
            said = f"config.methods={method!r}: valid with an oracle that has rewards, not {other}"
            checks.add(said, "methods")


def _check_best_of(checks: Checks) -> None:
    """Requires a method whose ensemble can choose among several samples."""
    if not checks.sound("methods", "eval.best_of"):
        return
    learners = sorted(m for m in METHODS if METHODS[m].learns_ensemble)
    can = not set(learners).isdisjoint(checks.config.methods)
    valid = f"1 (off) unless methods has one whose ensemble can choose: {learners}"
    checks.require(checks.config.eval.best_of == 1 or can, "eval.best_of", valid)
    for method in checks.config.methods:
        if METHODS[method].keeps_policy:
            valid = f"at least 2 with methods={method!r}, whose policy never changes"
            checks.require(checks.config.eval.best_of > 1, "eval.best_of", valid)


def check_methods_on_task(checks: Checks, task: Task) -> None:
    """Requires of the task what the methods' own sections require."""
    for method, own in _each(checks):
        if (section := METHODS[method].section) is not None:
            section.check_on_task(own, len(task.prompts["train"]))
