"""Replay of the labels: several preference updates per label, on all that were bought so far.

It is the plain way to spend more computation on each label, and so the baseline of methods that learn from a
posterior between labels: the same number of updates, without a posterior.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sea_jax import algorithm
from sea_jax.config.fields import Section, field
from sea_jax.methods.between_labels import wait_for_last
from sea_jax.runtime.mesh import shard_batch, to_host
from sea_jax.types import Config, PreferenceBatch

_SEED = 1_000_033  # offset of the seed that draws the batches
_update = jax.jit(algorithm.update, static_argnums=0, donate_argnums=1)


@dataclasses.dataclass(frozen=True)
class Replay(Section):
    """Preference updates on earlier labels."""

    section_name = "replay"
    updates_per_label: float = field(1.5, "updates per label, besides the one per batch", at_least=0)


@dataclasses.dataclass(frozen=True)
class ReplayLabels:
    """Takes preference updates (line 10) on random batches of all labelled duels."""

    reads_oracle: bool = False

    def optimizer(self, config: Config) -> optax.GradientTransformation | None:
        """Returns None: it is that of section `train`."""

    def samples(self, config: Config) -> None:
        """Returns None: it samples nothing."""

    def updates_per_step(self, config: Config) -> int:
        """Returns the further updates for a batch of labels."""
        return math.ceil(config.replay.updates_per_label * config.train.batch_size)

    def updates(self, config: Config, labels: int) -> int:
        """Returns the further updates that so many labels allow."""
        return int(config.replay.updates_per_label * labels)

    def trace(self, context: Any, prompts: Any, responses: Any, rewards: Any) -> None:
        """Returns None: its updates are those of `train.update`."""

    def improve(
        self, run: Any, before: int, batch: PreferenceBatch, learned: dict[str, Any]
    ) -> dict[str, Any]:
        """Adds the duels of this step to the memory, and makes the updates that its labels allow."""
        del learned
        memory = remember(run, batch)
        first, last = (self.updates(run.config, labels) for labels in (before, run.labeller.num_queries))
        if first == last or not len(memory.weight):
            return {}
        metrics, finite, B = {}, 1.0, len(batch.weight)
        for index in range(first, last):
            rng = np.random.default_rng([run.seed, _SEED, index])
            rows = rng.choice(len(memory.weight), B, replace=len(memory.weight) < B)
            part = jax.tree.map(lambda x, rows=rows: x[rows], memory)
            part = shard_batch(run.mesh, part._replace(from_oracle=np.zeros(B, bool)))  # bought before
            step = jnp.array(run.state.step)  # a copy, since the state is donated
            state, metrics = _update(run.settings, run.state, run.ref_params, part)
            wait_for_last(run, finite)
            finite *= metrics["step/finite"]
            run.set_state(state._replace(step=step))
        learned = {name: value for name, value in metrics.items() if name.startswith("policy/")}
        return learned | {"improve/finite": finite, "improve/updates": float(last - first)}


def remember(run: Any, batch: PreferenceBatch) -> PreferenceBatch:
    """Adds the duels that teach something to the run's memory; returns all that it holds, on the host."""
    new = {name: value for name, value in to_host(batch)._asdict().items() if value is not None}
    taught = new["weight"] > 0
    for name, value in new.items():
        old = run.memory.get(name, value[:0])
        run.memory[name] = np.concatenate([old, value[taught]])
    return batch._replace(**run.memory)
