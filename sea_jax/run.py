"""A run of Algorithm 2: its parts and state, the steps that it has posed, and what an observer sees of it."""

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from sea_jax import algorithm
from sea_jax.actors.actor import Actor
from sea_jax.actors.sampler import VersionedParams, new_version
from sea_jax.methods import Method
from sea_jax.methods.method import Prompts
from sea_jax.models import Responses
from sea_jax.oracles.labeller import Asked, Labeller
from sea_jax.runtime.mesh import to_host
from sea_jax.types import Array, Candidates, Config, Duel, Params, PreferenceBatch, SeaState


@dataclasses.dataclass
class Run:
    """One method on one seed: the parts that Algorithm 2 works with, and the state that it changes."""

    config: Config  # the method's
    method: Method
    name: str  # for people
    seed: int
    mesh: Mesh
    actor: Actor  # lines 3, 4
    backbone: Any  # lines 5-7: an ensemble.features.Extractor
    oracle: Any  # line 8: P
    labeller: Labeller  # line 8: asks the oracle and counts the labels bought
    settings: algorithm.UpdateSettings  # lines 9, 10
    ref_params: Params  # π_ref, its matrices in the precision that the model computes in
    initial_params: Callable[[], Params]  # θ⁰ in f32, read anew at each call
    state: SeaState
    policy: VersionedParams  # θ_t of the state, under a version for the sampler
    # Of learning between labels: a call after each update, which may end the run; arrays of earlier steps.
    between_updates: Callable[[], None] = lambda: None
    memory: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # on the host, by name
    posed: deque["Posed"] = dataclasses.field(default_factory=deque)  # the oldest first
    choices: dict[int, "Choice"] = dataclasses.field(default_factory=dict)  # of a restored run, by step
    waits: bool = False  # for labels of the oldest step that was posed
    step: int = 0  # t, steps done
    idle: int = 0  # steps since the last that bought a label

    def set_state(self, state: SeaState) -> None:
        """Takes over a state, and gives its policy a new version."""
        self.state, self.policy = state, new_version(state.policy.params)

    def decode(self, tokens: Any, mask: Any) -> list:
        """Decodes responses [..., T] to texts, in lists as the arrays are nested."""
        tokens, mask = to_host((tokens, mask))
        return self.actor.task.decode(tokens, mask) if len(tokens) else []


class Choice(NamedTuple):
    """The duels of a step, and the rewards by which they were chosen."""

    kept: np.ndarray | None  # [B] rows of the pool of prompts; None: all
    rewards: Array  # [K, B, M]
    duel: Duel


class Posed(NamedTuple):
    """A step whose duels were asked, and from which nothing has learned yet."""

    step: int
    prompts: Prompts
    candidates: Candidates
    choice: Choice
    extra: Responses | None
    asked: Asked
    shown: dict[int, list[str]]  # as in `Record`
    metrics: dict[str, float]
    seconds: dict[str, float]


class Record(NamedTuple):
    """The outcome of a step, for the observer. Its metrics may not be computed yet."""

    step: int
    metrics: dict[str, Any]
    batch: PreferenceBatch
    prompts: Prompts
    shown: dict[int, list[str]]  # the two responses that the oracle was shown, by row of the batch
    proposals: tuple[Array, Array]  # S_t: tokens and mask [B, M, T]
    seconds: dict[str, float]  # waited per stage


class Observer(Protocol):
    """Watches a run and changes nothing in it."""

    def begin(self, run: Run) -> None:
        """Sees the run before its first step."""
        ...

    def flush(self) -> None:
        """Writes the metrics of the last step, once the next one has dispatched its samples."""
        ...

    def end_step(self, run: Run, record: Record, last: bool) -> None:
        """Sees a step that was dispatched; `last` says that no other follows."""
        ...
