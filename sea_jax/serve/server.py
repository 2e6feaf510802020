"""Serves a chat whose policy learns from its users: the run, its engine and its pages in one process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sea_jax.config.overrides import for_method
from sea_jax.credentials import CHAT_TOKEN, OPERATOR_TOKEN
from sea_jax.errors import InputError, ServiceError, StoppedError
from sea_jax.experiment import assets, inputs, validate
from sea_jax.experiment.commands import cache_folder
from sea_jax.experiment.run import OpenRun, open_run
from sea_jax.experiment.workdir import claim_workdir, require_writable
from sea_jax.labels.chat import ChatDuels
from sea_jax.methods import METHODS
from sea_jax.methods.scorers import EnsembleScorer
from sea_jax.oracles.access import check_address, read_key
from sea_jax.pretraining.policy import save_policy
from sea_jax.run import Run
from sea_jax.runtime.mesh import to_host
from sea_jax.runtime.owner import own
from sea_jax.serve.chat import Chat
from sea_jax.serve.engine import Engine, Settings
from sea_jax.serve.learner import ChatOracle, Learner
from sea_jax.types import Config

_PACKAGES = ("starlette", "uvicorn", "jinja2")
_START_S = 30.0
_END_S = 30  # for answers that are being written
_ORACLE = "people"


def serve(config: Config, workdir: str) -> None:
    """Serves until a signal comes, and saves the policy then; goes on where the work directory's run stood.

    Args:
        config: with one method, and oracle.kind='people'.
        workdir: of the run and of the users' choices.

    Raises:
        InputError: the config cannot be served, or an address is not free.
        StoppedError: a signal came; the run is saved.
    """
    folder, cache = Path(workdir), cache_folder(config, workdir)
    task = validate.load_task(config, cache)
    method = require_servable(config)
    names = "config.serve.host", "config.serve.port"
    host = check_address(config.serve.host, config.serve.port, CHAT_TOKEN, names)
    require_writable("--workdir", folder)
    with own(folder), ChatDuels(folder, config.serve.answer_s) as duels:
        claim_workdir(config, folder, extend=True)
        inputs.claim(config, folder, inputs.of_run(config, task))
        shared = assets.prepare(config, cache, task, folder)
        labeller_of: Any = lambda own_config, _: ChatOracle(duels, own_config.oracle.ties)  # noqa: E731
        with (
            contextlib.closing(shared.sampler),
            open_run(config, shared, method, 0, folder, labeller_of=labeller_of) as opened,
        ):
            engine = make_engine(opened, shared)
            learner = Learner(opened, duels, engine)
            engine.warm_up()
            chat = Chat(task, engine, duels, learner, opened.run.config)
            try:
                with engine.running(), serve_pages(config, host, chat, engine, learner, duels):
                    learner.learn()
            except StoppedError:
                params = to_host(opened.run.state.policy.params)
                save_policy(config, opened.folder / "policy", shared.model, params, task)
                raise


def require_servable(config: Config) -> str:
    """Returns the method of a config whose users are the oracle.

    Raises:
        InputError: with all that cannot be served.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serve: {', '.join(missing)} not installed; valid: pip install 'sea_jax[people]'")
    problems = []
    fixed = {
        "oracle.kind": (config.oracle.kind, _ORACLE, "users are the oracle"),
        "sampler.kind": (config.sampler.kind, "jax", "answers are written in this process"),
        "ray.actors": (config.ray.actors, 0, "answers are written in this process"),
        "num_seeds": (config.num_seeds, 1, "a chat has one run"),
    }
    for name, (value, valid, why) in fixed.items():
        if value != valid:
            problems.append(f"config.{name}={value!r}: valid with serve is {valid!r}, as {why}")
    if len(config.methods) != 1:
        problems.append(f"config.methods={tuple(config.methods)!r}: valid with serve is one, as ('ee_ts',)")
    else:
        problems += _problems_of_method(for_method(config, config.methods[0]), config.methods[0])
    if problems:
        raise InputError(*problems)
    return config.methods[0]


def _problems_of_method(config: Config, name: str) -> list[str]:
    """Says what a method does that a chat cannot."""
    method = METHODS[name]
    problems = [
        f"config.train.{field}={config.train[field]}: valid with serve is 0, as users ask when they like"
        for field in ("staleness", "ask_ahead")
        if config.train[field]
    ]
    scored = method.scorer is None or isinstance(method.scorer, EnsembleScorer)
    own_answers = method.reference_share(config) == 0 and method.steps_per_round(config) == 1
    if not scored or not own_answers or method.keeps_policy or method.reads_oracle:
        problems.append(
            f"config.methods=({name!r},): valid with serve is a method that learns the policy from its own "
            "answers, chosen at random or by a posterior, as 'ee_ts', 'sea', 'passive' or 'posterior_rl'"
        )
    return problems


def make_engine(opened: OpenRun, shared: assets.Assets) -> Engine:
    """Makes the engine of a run."""
    run = opened.run
    config, fields = run.config, run.config.serve
    settings = Settings(
        num_responses=run.method.num_responses(config),
        temperature=config.train.temperature,
        strategy=functools.partial(_strategy, run),
        least_std=fields.least_std,
        at_once=fields.at_once,
        waiting=fields.waiting,
        chunk=fields.chunk,
    )
    # A restarted chat draws other samples than before.
    seed = time.time_ns() % 2**31
    return Engine(shared.task, shared.model, shared.backbone, shared.ref_params, settings, seed)


def _strategy(run: Run) -> str:
    """Returns how two answers are chosen: at random while the ensemble is cold."""
    cold = run.method.learns_ensemble and run.labeller.num_queries < run.config.sea.passive_queries
    return "passive" if cold else run.method.strategy


@contextlib.contextmanager
def serve_pages(
    config: Config, host: str, chat: Chat, engine: Engine, learner: Learner, duels: ChatDuels
) -> Iterator[None]:
    """Serves the pages in a thread while the context lasts, and says where they are.

    Raises:
        ServiceError: they do not answer within half a minute.
    """
    import uvicorn

    from sea_jax.serve.page import Access, ChatPage

    token, port = read_key(CHAT_TOKEN), config.serve.port
    # Without a token another site's name must not reach the chat (DNS rebinding); with one a proxy's may.
    hosts = ("*",) if token else (host, "localhost")
    access = Access(token, read_key(OPERATOR_TOKEN), hosts, config.serve.requests_per_s)
    server = uvicorn.Server(
        uvicorn.Config(
            ChatPage(chat, engine, learner, duels, access).app, host=host, port=port, log_level="warning",
            server_header=False, date_header=False, timeout_keep_alive=30, limit_concurrency=2000,
            timeout_graceful_shutdown=_END_S,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, name="pages", daemon=True)
    thread.start()
    end = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise ServiceError(f"the chat at {host}:{port} does not begin to serve")
        time.sleep(0.02)
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    needs = f" (token: {CHAT_TOKEN})" if token else ""
    print(f"chat at http://{shown}:{port}/{needs}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
