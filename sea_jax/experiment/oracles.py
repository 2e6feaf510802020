"""Makes the preference oracle that a config names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jax.sharding import Mesh

from sea_jax import tasks
from sea_jax.config.oracle import REMOTE_KINDS
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.experiment import reward_scorer
from sea_jax.oracles import function, protocol
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.function import FunctionPreferences
from sea_jax.oracles.judge import Judge, Manner, Prices
from sea_jax.oracles.protocol import Answers, BroadcastFn
from sea_jax.oracles.remote import RemoteOracle, RequestLimits
from sea_jax.oracles.spending import Spending
from sea_jax.runtime.mesh import broadcast_from_main, is_main
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config

NO_ORACLE = "none"  # as config.oracle.kind: of runs that only learn from labels that exist; no user names it


class NoOracle:
    """Answers nothing."""

    def answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Answers:
        """Leaves all comparisons unanswered."""
        return Answers(np.full(len(prompts), np.nan), np.zeros(len(prompts), bool))


def make_oracles(
    config: Config, mesh: Mesh, task: Task | None = None, folder: Path | None = None
) -> Callable[[int], Any]:
    """Makes a function from an oracle seed to its oracle.

    Args:
        config: the experiment's.
        mesh: the devices that hold a reward model.
        task: two of its texts try out a user's function; None: it is not tried out.
        folder: of the runs, which keeps what a judge has cost; None: nobody keeps it.

    Returns:
        A function of the oracle seed; a reward model or a user's function is the same oracle for every seed.
        Where people label, it is the oracle that evaluates: the task's hidden reward, which people stand in
        for in simulations, or none.
    """
    if config.oracle.kind == NO_ORACLE:
        return lambda seed: NoOracle()
    if config.ray.oracles:
        from sea_jax.actors import ray_workers  # imports Ray, an extra

        return ray_workers.start_oracles(config, make_local_oracles)
    return make_local_oracles(config, mesh, task, folder)


def labelled_by(config: Config, replicate: int) -> str:
    """Names the oracle of a run for its journal; nothing of it is secret."""
    oracle, seed = config.oracle, config.task.oracle_seed + replicate
    url = urlsplit(oracle.url)
    names = {
        "task": f"hidden reward of {config.task.name}, seed {seed}",
        "reward_model": f"reward model {oracle.folder}",
        "function": f"function {oracle.function}",
        "remote": f"service {url.hostname}:{url.port}, seed {seed}",
        "judge": f"judge {oracle.model}",
        NO_ORACLE: "nobody",
        **dict.fromkeys(PEOPLE_KINDS, "people"),
    }
    return names[oracle.kind]


def make_local_oracles(
    config: Config, mesh: Mesh, task: Task | None = None, folder: Path | None = None
) -> Callable[[int], Any]:
    """Makes oracles without Ray; the arguments are those of `make_oracles`."""
    if config.oracle.kind in REMOTE_KINDS:
        return make_remote_oracles(config, broadcast_from_main, folder if is_main() else None)
    if config.oracle.kind == "reward_model":
        oracle = reward_scorer.load_oracle(config.oracle, mesh)
        return lambda seed: oracle
    if config.oracle.kind == "function":
        oracle = make_function_oracle(config.oracle.function, broadcast_from_main, task)
        return lambda seed: oracle
    reward_fn = tasks.find(config.task.name).reward_fn
    if reward_fn is None and config.oracle.kind in PEOPLE_KINDS:
        return lambda seed: NoOracle()
    assert reward_fn is not None, config.task.name  # the checks of the config see to it
    return lambda seed: BradleyTerryOracle(reward_fn(seed))


def make_function_oracle(
    name: str, broadcast: BroadcastFn, task: Task | None
) -> BradleyTerryOracle | FunctionPreferences:
    """Makes the oracle of a user's function, and asks it about two train prompts.

    Args:
        name: see `function.load`.
        broadcast: see `BroadcastFn`.
        task: its references, demonstrations or else prompts are the responses; None: nothing is asked.

    Raises:
        InputError: there is no such function, or its answer is not valid.
    """
    oracle = function.make_oracle(function.load(name), broadcast)
    if task is not None:
        prompts = task.prompts["train"][:2]
        responses = (task.references["train"] or task.demonstrations or prompts)[:2]
        protocol.compare(oracle, prompts, responses, responses[::-1])
    return oracle


def make_remote_oracles(
    config: Config, broadcast: BroadcastFn, folder: Path | None = None
) -> Callable[[int], Any]:
    """Makes oracles that ask a service, and checks each once, before training begins.

    Args:
        config: the experiment's.
        broadcast: see `BroadcastFn`.
        folder: keeps what a judge has cost.

    Returns:
        A function from an oracle seed to its oracle.

    Raises:
        ServiceError: the service or the model does not answer, or not as it must.
        InputError: the service lacks the seed, or a package is missing.
    """
    oracle, first = config.oracle, config.task.oracle_seed
    limits = RequestLimits(
        oracle.timeout_s, oracle.patience_s, oracle.attempts, oracle.in_flight, oracle.request_size
    )
    if oracle.kind == "remote":
        make = lambda seed: RemoteOracle(oracle.url, seed, limits, broadcast=broadcast)  # noqa: E731
        seeds = range(first, first + config.num_seeds)
    else:
        prices = Prices(oracle.price_in, oracle.price_out)
        spending = Spending(folder, oracle.max_calls, oracle.max_usd)
        manner = Manner(oracle.verdicts, oracle.both_orders, oracle.ties)
        make = lambda seed: Judge(  # noqa: E731
            oracle.base_url, oracle.model, seed, limits, oracle.requests_per_minute, prices, broadcast,
            manner, spending,
        )  # fmt: skip
        seeds = [first]  # every seed asks the same model, and its replies cost
    for seed in seeds:
        make(seed).check()
    return make
