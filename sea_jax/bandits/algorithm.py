"""Algorithm 1, Thompson sampling for dueling bandits, with the strategies and posteriors of SEA.

A run is one `lax.scan` over rounds, and `simulate` is a vmap of it over seeds.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sea_jax.bandits.problem import Problem
from sea_jax.ensemble import experience, heads
from sea_jax.ensemble.posterior import Posterior
from sea_jax.ensemble.selection import STRATEGIES
from sea_jax.types import Array, EnsembleState, Experience, Params


@dataclasses.dataclass(frozen=True)
class Agent:
    """A strategy and a posterior. Hashable, since it is static under jit.

    Attributes:
        strategy: a row of `ensemble.STRATEGIES`: `ee_ts` is Algorithm 1 with line 5, `bai_ts` with line 6.
        posterior: p(r | D), of which K members are kept.
    """

    strategy: str
    posterior: Posterior


class Rounds(NamedTuple):
    """A run's rounds, an array [T] each; after `simulate` [S, T]."""

    regret: Array  # f32, the immediate regret R_t = P(π* ≻ a_t) + P(π* ≻ a'_t) − 1, in [−1, 1]
    simple_regret: Array  # f32, mean over contexts of max_b P(b ≻ â) − ½ after the round; see `run`
    void: Array  # bool, True: the strategy found no second arm, and nothing was asked


@partial(jax.jit, static_argnums=(2, 3))
def simulate(
    keys: Array, problems: Problem, agent: Agent, num_rounds: int, priors: Params | None = None
) -> Rounds:
    """Runs S seeds at once.

    Args:
        keys: [S] keys.
        problems: one for each seed, leaves [S, ...].
        agent: strategy and posterior.
        num_rounds: T.
        priors: the posterior's prior for each seed, leaves [S, ...]; None: the posterior's own.
    """
    return jax.vmap(partial(run, agent=agent, num_rounds=num_rounds))(keys, problems, priors=priors)


def run(key: Array, problem: Problem, agent: Agent, num_rounds: int, priors: Params | None = None) -> Rounds:
    """Runs Algorithm 1 for T rounds.

    The arm that it would recommend for a context, â, is the best under the mean of the members. Its simple
    regret is how far the arm that beats it most is ahead of ½. Under Bradley-Terry preferences, that is how
    far the best arm is.

    Args:
        key: [] key.
        problem: arms and preferences.
        agent: strategy and posterior.
        num_rounds: T.
        priors: the posterior's prior; None: its own.
    """
    init_key, rounds_key = jax.random.split(key)
    width = problem.features.shape[-1]
    # Line 1: D_0 ← ∅
    learner = agent.posterior.init(init_key, width, priors), experience.init(num_rounds, width)
    step = partial(one_round, problem=problem, agent=agent)
    # Line 2: for t = 1, …, T do
    return jax.lax.scan(step, learner, jax.random.split(rounds_key, num_rounds))[1]


def one_round(
    learner: tuple[EnsembleState, Experience], key: Array, problem: Problem, agent: Agent
) -> tuple[Any, Rounds]:
    """Makes one round of Algorithm 1, and measures what is known after it."""
    state, data = learner
    context_key, order_key, select_key, label_key, posterior_key = jax.random.split(key, 5)
    X, A, _ = problem.features.shape
    # Line 3: Receive a prompt x_t ∼ p_X. Its arms come in random order, as samples of a policy do.
    context = jax.random.randint(context_key, (), 0, X)
    arms = jax.random.permutation(order_key, A)
    features = problem.features[context, arms]
    # Lines 4 to 6: Sample r ∼ p_r(· | D_{t−1}) and set y_t ← argmax r(x_t, b); select y'_t.
    duel = STRATEGIES[agent.strategy](select_key, heads.rewards(state.params, features[None]))
    pair = jnp.stack([duel.first[0], duel.second[0]])
    first, second = arms[pair]
    # Line 7: Query P to label {y_t, y'_t}, and update D_t ← D_{t−1} ∪ {(x_t, y_t+, y_t−)}.
    wins = jax.random.bernoulli(label_key, problem.preference[context, first, second])
    ranked = jnp.where(wins, pair, pair[::-1])
    data = experience.add(data, features[ranked][None], jnp.ones(1), ~duel.void)
    state, _ = agent.posterior.update(posterior_key, state, data)
    lost = problem.winner[context] @ problem.preference[context]  # [A], P(π* ≻ b)
    return (state, data), Rounds(
        lost[first] + lost[second] - 1, _simple_regret(problem, state.params), duel.void[0]
    )


def _simple_regret(problem: Problem, params: Params) -> Array:
    recommended = jnp.argmax(heads.rewards(params, problem.features).mean(0), -1)  # [X]
    beats = jnp.take_along_axis(problem.preference, recommended[:, None, None], 2)[..., 0]  # [X, A]
    return (beats.max(-1) - 0.5).mean()
