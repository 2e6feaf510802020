"""The host loop of Algorithm 2. READ FIRST: this file and `algorithm.py` are the system.

`train_step` is one iteration of the paper's loop: its lines 3 to 8 in `pose`, 8 to 10 in `learn`. `train`
repeats it until the budget of labels is spent. A `Run` holds what they work on; `experiment/run.py` makes it.
Everything that only watches (metrics, evaluation, progress) is behind the `Observer` and lives in
`experiment/logbook.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sea_jax import algorithm
from sea_jax.ensemble import uncertainty
from sea_jax.methods.method import Prompts, no_rewards
from sea_jax.models import Responses
from sea_jax.oracles.labeller import Asked, Origin
from sea_jax.run import Choice, Observer, Posed, Record, Run
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime.mesh import to_host
from sea_jax.runtime.stopwatch import Stopwatch
from sea_jax.state import step_keys
from sea_jax.types import Array, Candidates, Duel, PreferenceBatch, SeaState


def train(run: Run, observer: Observer) -> None:
    """Runs Algorithm 2 until the query budget is spent, or no step buys a label any more.

    Args:
        run: its state is changed.
        observer: see `Observer`.

    Raises:
        FloatingPointError: from the observer, after a step whose loss or gradient is not finite.
    """
    budget, patience = run.config.train.query_budget, run.config.train.max_idle_steps
    observer.begin(run)
    bought = run.labeller.num_queries
    # A policy that only repeats itself offers only void duels and would never spend its budget.
    while bought < budget and run.idle < patience:
        record = train_step(run, run.step, observer)
        run.idle = 0 if run.labeller.num_queries > bought else run.idle + 1
        run.step, bought = run.step + 1, run.labeller.num_queries
        observer.end_step(run, record, last=bought >= budget or run.idle >= patience)
    assert int(run.state.num_queries) == run.labeller.num_queries


def train_step(run: Run, step: int, observer: Observer) -> Record:
    """Runs one iteration of Algorithm 2: `pose` to its line 8, `learn` from there.

    With train.ask_ahead the duels of later steps are posed first, by the posterior of now.
    """
    while len(run.posed) <= run.config.train.ask_ahead:
        run.posed.append(pose(run, step + len(run.posed), observer))
    return learn(run, step)


def pose(run: Run, step: int, observer: Observer) -> Posed:
    """Chooses the duels of a step and asks the oracle. Every line of the paper stands above its call."""
    keys = step_keys(run.state.key, step)

    # 3   Receive a prompt x_t ~ p_X.
    # 4   Sample M responses y_t^i ~ π_θt−1(·|x_t) to construct S_t = {y_t^i}, i = 1 … M.
    run.actor.begin(run.policy, step, run.state.key)
    observer.flush()  # the devices sample while the host writes the step before
    prompts, responses, extra, metrics, seconds = run.actor.read()
    watch = Stopwatch(seconds)

    # 5   Sample φ ~ Uniform(Φ_t−1) and set y_t ← argmax_b∈St r_φ(x_t, b).
    # 6   E&E: repeat sample φ and set y'_t ← argmax_b∈St r_φ(x_t, b) until y'_t ≠ y_t.
    # 7   BAI: set y'_t ← argmax_b∈St V_φ[σ(r_φ(x_t, y_t) − r_φ(x_t, b))].
    candidates, rewards = score(run, prompts, responses)
    watch.lap("features", rewards)
    duel = propose(keys.select, rewards, strategy=strategy(run, prompts))
    known = run.choices.pop(step, None)  # of a restored run, which chose by an earlier posterior
    kept = keep_of_pool(run, prompts, candidates, rewards, duel) if known is None else known.kept
    prompts, candidates, rewards, duel, extra = at_rows(kept, prompts, candidates, rewards, duel, extra)

    # 8   If g < γ for g ~ Uniform(0, 1), label {y_t, y'_t} by P, else by φ ~ Uniform(Φ_t−1).
    duel = route(keys.route, keys.label, duel, rewards, candidates, **routing(run, step, prompts))
    if known is not None:
        rewards, duel = known.rewards, known.duel
    duel, texts = read_duels(run, candidates, duel)
    watch.lap("select", duel)
    asked, shown = ask_oracle(run, step, prompts.texts, candidates, rewards, duel, texts)
    watch.lap("oracle")
    choice = Choice(kept, rewards, duel)
    return Posed(step, prompts, candidates, choice, extra, asked, shown, metrics, watch.seconds)


def learn(run: Run, step: int) -> Record:
    """Waits for the labels of the oldest step that was posed, and learns from them (lines 8 to 10)."""
    _, prompts, candidates, (_, rewards, duel), extra, asked, shown, metrics, seconds = run.posed[0]
    watch, bought = Stopwatch(seconds), run.labeller.num_queries
    labels = np.zeros((2, len(prompts.texts)), bool)
    run.waits = True  # what is raised now leaves the step posed
    labels[:, [*shown]] = run.labeller.wait(asked)
    run.waits, _ = False, run.posed.popleft()
    watch.lap("oracle")
    label_key = step_keys(run.state.key, step).label
    batch = assign_labels(label_key, rewards, prompts.batch, candidates, duel, *labels)
    batch = mesh_lib.shard_batch(run.mesh, with_extra(batch, extra))

    # 9   Update Φ_t by the regularised likelihood of the experience D_t (Eq. 8).
    # 10  Update θ_t by the preference loss F on the labelled batch B_t (Eq. 9).
    state, learned = update(run.settings, run.state, run.ref_params, batch)
    run.set_state(state)
    if run.method.improvement is not None:  # Eq. 7: between labels the policy learns from the posterior
        learned |= run.method.improvement.improve(run, bought, batch, learned)
        watch.lap("improve", run.policy.params)

    metrics = learned | metrics | run.labeller.metrics()
    if run.method.chooses and not prompts.given:
        metrics["duel/distinct_responses"] = count_distinct(candidates)
    if (delay := step - run.actor.policy_step(step)) and not prompts.given:
        metrics["duel/staleness"] = float(delay)  # steps that the policy has learned since it wrote the pair
    return Record(step, metrics, batch, prompts, shown, candidates[:2], watch.seconds)


def score(run: Run, prompts: Prompts, responses: Responses) -> tuple[Candidates, Array]:
    """Returns S_t with its features, and rewards [K, B, M] in which equal responses have equal rewards."""
    features, rewards = None, no_rewards(*responses.tokens.shape[:2])
    if run.method.scorer is not None:
        features, rewards = run.method.scorer.score(run, prompts, responses)
    candidates = Candidates(responses.tokens, responses.mask, features)
    return candidates, merge_duplicates(rewards, candidates)


def strategy(run: Run, prompts: Prompts) -> str:
    """Returns the row of STRATEGIES: passive for the first `passive_queries`, while the ensemble is cold."""
    cold = run.method.learns_ensemble and run.labeller.num_queries < run.config.sea.passive_queries
    return "passive" if cold or prompts.given else run.method.strategy


def keep_of_pool(
    run: Run, prompts: Prompts, candidates: Candidates, rewards: Array, duel: Duel
) -> np.ndarray | None:
    """Returns the rows of the B most informative duels, where the method proposes to a pool of prompts."""
    B = run.config.train.batch_size
    if len(prompts.rows) == B:
        return None
    return to_host(most_informative(rewards, candidates, duel, B, run.method.pool_choice(run.config)))


def at_rows(
    kept: np.ndarray | None, prompts: Prompts, candidates: Candidates, rewards: Array, duel: Duel,
    extra: Responses | None,
) -> tuple[Prompts, Candidates, Array, Duel, Responses | None]:  # fmt: skip
    """Keeps some rows of a batch; all with None."""
    if kept is None:
        return prompts, candidates, rewards, duel, extra
    batch, candidates, duel, extra = jax.tree.map(lambda x: x[kept], (prompts.batch, candidates, duel, extra))
    texts = [prompts.texts[row] for row in kept]
    return Prompts(batch, texts, prompts.rows[kept]), candidates, rewards[:, kept], duel, extra


def routing(run: Run, step: int, prompts: Prompts) -> dict[str, Any]:
    """Returns the options of `route`: γ is 1 until the ensemble has seen `burn_in` labels (App. F.1)."""
    sea, bought = run.config.sea, run.labeller.num_queries
    mixed = run.method.synthetic and bought >= sea.burn_in and not prompts.given
    gamma = sea.gamma if mixed else 1.0
    asked = algorithm.oracle_share(gamma, run.config.train.batch_size, step)
    open_duels = sum(len(posed.shown) for posed in run.posed)
    remaining = run.config.train.query_budget - bought - open_duels
    counts = dict(remaining=remaining, gamma=gamma, num_asked=asked)
    return counts | dict(gamma_mode=sea.gamma_mode, synthetic_pairs=sea.synthetic_pairs)


def read_duels(run: Run, candidates: Candidates, duel: Duel) -> tuple[Duel, list[list[str]]]:
    """Decodes the two responses of each duel; those of one text are void: nobody can tell them apart."""
    pair, tokens, mask = to_host((jax.numpy.stack([duel.first, duel.second], 1), *candidates[:2]))
    rows = np.arange(len(pair))[:, None]
    texts = run.decode(tokens[rows, pair], mask[rows, pair])
    if (equal := np.array([first == second for first, second in texts])).any():
        duel = duel._replace(void=duel.void | equal, query_oracle=duel.query_oracle & ~equal)
    return duel, texts


def ask_oracle(
    run: Run, step: int, prompts: list[str], candidates: Candidates, rewards: Array, duel: Duel,
    texts: list[list[str]],
) -> tuple[Asked, dict[int, list[str]]]:  # fmt: skip
    """Asks the oracle about the duels that go to it, and no others.

    Returns:
        What the labeller waits for; the two responses that are shown, by row of the batch.
    """
    variance = duel_variance(rewards, duel.first, duel.second)
    duel, tokens, mask, variance = to_host((duel, candidates.tokens, candidates.mask, variance))
    rows = np.flatnonzero(duel.query_oracle)
    chosen = rows[:, None], np.stack([duel.first, duel.second], 1)[rows]
    pairs = [texts[row] for row in rows]
    written = run.actor.policy_step(step), rows, tokens[chosen], mask[chosen], run.actor.packed()
    origin = Origin(step, *written, np.sqrt(variance[rows]))
    asked = run.labeller.ask(
        [prompts[row] for row in rows], [y for y, _ in pairs], [y for _, y in pairs],
        rng_seed=run.seed * 1_000_003 + step, origin=origin,
    )  # fmt: skip
    return asked, dict(zip(rows.tolist(), pairs, strict=True))


def with_extra(batch: PreferenceBatch, extra: Responses | None) -> PreferenceBatch:
    """Adds the further responses that the method's loss term reads."""
    return batch._replace(extra_tokens=extra.tokens, extra_mask=extra.mask) if extra is not None else batch


merge_duplicates = jax.jit(algorithm.merge_duplicates)
most_informative = jax.jit(algorithm.most_informative, static_argnums=(3, 4))
propose = jax.jit(algorithm.propose, static_argnames="strategy")
route = jax.jit(algorithm.route, static_argnames=("gamma_mode", "synthetic_pairs"))
assign_labels = jax.jit(algorithm.assign_labels)
update: Callable[..., tuple[SeaState, dict[str, Array]]] = jax.jit(
    algorithm.update, static_argnums=0, donate_argnums=1
)
duel_variance = jax.jit(uncertainty.duel_variance)
count_distinct = jax.jit(algorithm.count_distinct)
