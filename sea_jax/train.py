"""The host loop of Algorithm 2. READ FIRST: this file and `algorithm.py` are the system.

3   receive prompts x_t                                   proposals.py: tasks/, grain
4   sample M responses from the latest policy             proposals.py: runtime/samplers.py
5-7 score them under the ensemble, choose the duels       algorithm.propose
8   ask the oracle, or let a sampled head decide          oracles/, algorithm.drop, assign_labels
9   update the ensemble on D_t                            algorithm.update
10  update the policy on B_t                              algorithm.update
"""

import functools
import inspect
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import FrozenConfigDict
from tqdm import tqdm

from sea_jax import algorithm, evaluate, models
from sea_jax.actors.actor import Proposal, Proposer
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.ensemble import heads
from sea_jax.experiment.assets import Assets
from sea_jax.losses import DAP_LOSSES
from sea_jax.methods import METHODS, Method
from sea_jax.oracles import protocol
from sea_jax.oracles.labels import Labeller, Labels
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime.mesh import fetch
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.progress import bar as progress_bar
from sea_jax.runtime.sharding import gathering
from sea_jax.state import init_state, policy_optimizer, step_keys
from sea_jax.types import Array, Candidates, Config, Duel, PreferenceBatch, PromptBatch


class Step(NamedTuple):
    """What a dispatched step leaves for the host to read once the next one is under way."""

    metrics: dict[str, Array]
    batch: PreferenceBatch
    seconds: dict[str, float]


class Run:
    """One method on one seed: the compiled functions, and the loop around them."""

    def __init__(self, config: Config, assets: Assets, method: str, replicate: int, folder: Path):
        self.config, self.assets, self.folder = config, assets, folder
        self.method: Method = METHODS[method]
        self.name = f"{method} seed {config.seed + replicate}"
        self.oracle = assets.oracle(config.task.oracle_seed + replicate)
        self.labeller = Labeller(self.oracle, config.oracle.labels, config.oracle.flip_probability)
        self.learner, head = make_learner(
            gathering(assets.mesh, assets.model), FrozenConfigDict(config.train),
            FrozenConfigDict(config.ensemble), self.method, self.method.alpha(config),
        )  # fmt: skip
        self.seed = config.seed + replicate
        self.proposer = Proposer(config, assets, self.method, self.seed)
        state = init_state(
            jax.random.key(self.seed), assets.initial_params(),
            self.learner.policy_optimizer, head, self.learner.ensemble_optimizer,
            num_members=config.ensemble.num_members, feature_width=assets.backbone.feature_width,
            capacity=config.ensemble.capacity,
            prior_heads=assets.prior_heads if config.ensemble.prior == "pretrained" else None,
        )  # fmt: skip
        self.state = mesh_lib.settle(assets.mesh, state)
        self.policy = new_version(self.state.policy.params)
        self.ahead: deque[Proposal] = deque()  # of steps that did not learn yet, by the policy of then
        self.online_wins = self.online_responses = 0.0

    def loop(self, writer: MetricWriter) -> None:
        """Runs Alg. 2 until the query budget is spent, or the policy offers nothing to ask about any more."""
        budget, every = self.config.train.query_budget, self.config.eval.every_queries
        bar = progress_bar(None, self.name, "query", self.config.progress, budget)
        done, last = 0, None
        self._evaluate(writer, bar, 0, 0, None)
        step = idle = 0
        while done < budget and idle < self.config.train.max_idle_steps:
            last = self._step(step, done, writer, last)
            step, previous, done = step + 1, done, self.labeller.num_queries
            idle = 0 if done > previous else idle + 1
            bar.update(done - previous)
            ends = done == budget or idle == self.config.train.max_idle_steps
            if done // every > previous // every or ends:
                self._log(writer, step - 1, done, last)
                self._evaluate(writer, bar, step, done, last)
                last = None
        bar.close()
        if done < budget:
            said = "%s: ended after %d of %d queries, since %d steps in a row had only equal responses%s"
            dropped = self.labeller.num_dropped
            also = f", or duels that the oracle left without an answer ({dropped} in all)" if dropped else ""
            logging.warning(said, self.name, done, budget, idle, also)
        assert int(self.state.num_queries) == self.labeller.num_queries == done

    def _step(self, step: int, done: int, writer: MetricWriter, last: Step | None) -> Step:
        """One pass through lines 3-10; reads the step before while the device works on this one."""
        while len(self.ahead) <= self.config.train.staleness:
            self.ahead.append(self._begin(step + len(self.ahead)))  # lines 3, 4
        proposal = self.ahead.popleft()
        prompts, texts = proposal.prompts, proposal.texts
        keys = step_keys(self.state.key, step)
        if last is not None:
            self._log(writer, step - 1, done, last)
        responses, y_ref, waited = self.proposer.read(proposal)
        generated = time.perf_counter()

        candidates, rewards = self._score(prompts, responses, texts)
        remaining = self.config.train.query_budget - done
        duel = propose(
            keys.select, keys.label, rewards, candidates, remaining,
            strategy=self._strategy(done), gamma=self._gamma(done),
            gamma_mode=self.config.sea.gamma_mode, synthetic_pairs=self.config.sea.synthetic_pairs,
        )  # 5-7  # fmt: skip
        jax.block_until_ready(duel)
        selected = time.perf_counter()

        labels, shown = self._ask(step, texts, candidates, duel)  # 8
        labelled = time.perf_counter()
        duel = drop(duel, labels.answered)
        batch = assign_labels(keys.label, rewards, prompts, candidates, duel, labels.prefers_first)
        if y_ref is not None:
            batch = batch._replace(y_ref_tokens=y_ref.tokens, y_ref_mask=y_ref.mask)
        batch = mesh_lib.split(self.assets.mesh, batch)
        self.state, metrics = update(self.learner, self.state, self.assets.ref_params, batch)  # 9, 10
        self.policy = new_version(self.state.policy.params)
        metrics |= proposal.metrics | self._online(prompts, texts, shown) | self.labeller.metrics()
        if self.method.active:
            metrics["duel/distinct_responses"] = count_distinct(candidates)
        return Step(metrics, batch, waited | dict(select=selected - generated, oracle=labelled - selected))

    def _begin(self, step: int) -> Proposal:
        return self.proposer.begin(self.policy, step, step_keys(self.state.key, step).sample)

    def _sampler(self, num_responses: int, temperature: float) -> Callable[..., models.Responses]:
        """(tokens [B, L], mask, key) -> Responses [B, num_responses, T] of the latest policy."""
        return functools.partial(
            sample_now, self.assets.sampler, self.policy,
            num_responses=num_responses, temperature=temperature,
        )  # fmt: skip

    def _score(self, prompts: PromptBatch, responses: models.Responses, texts: list[str]):
        """Features of S_t and their rewards [K, B, M] under every member, or under what stands for it."""
        B, M, _ = responses.tokens.shape
        backbone, scorer = self.assets.backbone, self.method.scorer if self.method.active else None
        if scorer == "ensemble":
            features = backbone(texts, prompts.tokens, prompts.mask, responses)
            return Candidates(*responses, features), member_rewards(self.state.ensemble.params, features)
        features, rewards = jnp.zeros((B, M, backbone.feature_width)), jnp.zeros((1, B, M))
        if scorer == "implicit":
            both = self.state.policy.params, self.assets.ref_params
            rewards = implicit_rewards(self.learner, *both, prompts, responses.tokens, responses.mask)
        elif scorer == "oracle":
            flat = [y for row in self._texts(responses.tokens, responses.mask) for y in row]
            repeated = [x for x in texts for _ in range(M)]
            rewards = jnp.asarray(self.oracle.rewards(repeated, flat)).reshape(1, B, M)
        return Candidates(*responses, features), rewards

    def _gamma(self, done: int) -> float:
        """γ: 1 until the ensemble has seen `burn_in` labels (App. F.1)."""
        if not self.method.synthetic or done < self.config.sea.burn_in:
            return 1.0
        return self.config.sea.gamma

    def _strategy(self, done: int) -> str:
        """Passive for the first `passive_queries`, while the ensemble has few labels to go by."""
        cold = self.method.learns_ensemble and done < self.config.sea.passive_queries
        return "passive" if cold else self.method.strategy

    def _ask(
        self, step: int, texts: list[str], candidates: Candidates, duel: Duel
    ) -> tuple[Labels, dict[int, list[str]]]:
        """Buys the labels of this step's duels, and no other.

        Returns:
            Labels [B], False where none is bought; the pair of responses shown, by row of the batch.
        """
        duel, tokens, mask = fetch((duel, candidates.tokens, candidates.mask))
        rows = np.flatnonzero(duel.query_oracle)
        pair = np.stack([duel.first, duel.second], 1)[rows]
        at = (rows[:, None], pair)
        pairs = self._texts(tokens[at], mask[at])
        bought = self.labeller.label(
            [texts[row] for row in rows], [y for y, _ in pairs], [y for _, y in pairs],
            rng_seed=self.seed * 1_000_003 + step,
        )  # fmt: skip
        labels = Labels(np.zeros(len(texts), bool), np.zeros(len(texts), bool))
        for whole, part in zip(labels, bought, strict=True):
            whole[rows] = part
        return labels, dict(zip(rows.tolist(), pairs, strict=True))

    def _online(
        self, prompts: PromptBatch, texts: list[str], shown: dict[int, list[str]]
    ) -> dict[str, float]:
        """Win rate of what the oracle was shown, in this step and in all so far; buys no label.

        A judge is not asked: two comparisons more for each duel would cost three times as much.
        """
        judged = isinstance(self.oracle, protocol.PartialOracle)
        if not shown or judged or not self.assets.task.references["train"]:
            return {}
        rows, references = list(shown), self.assets.task.references["train"]
        won = evaluate.duel_wins(
            self.oracle, self.config.oracle.labels, [texts[row] for row in rows], list(shown.values()),
            [references[i] for i in fetch(prompts.row)[rows]],
        )  # fmt: skip
        self.online_wins += won.sum()
        self.online_responses += won.size
        return {
            "duel/win_rate_reference": float(won.mean()),
            "duel/win_rate_reference_so_far": float(self.online_wins / self.online_responses),
        }

    def _texts(self, tokens: Any, mask: Any) -> list:
        tokens, mask = fetch((tokens, mask))
        return self.assets.task.decode(tokens, mask) if len(tokens) else []

    def _log(self, writer: MetricWriter, step: int, queries: int, last: Step) -> None:
        start = time.perf_counter()
        metrics = {k: float(v) for k, v in fetch(last.metrics).items()}
        seconds = {"learn": time.perf_counter() - start + last.seconds.get("learn", 0)}
        if not metrics["step/finite"]:
            self._stop_on_nan(step, last.batch, metrics)
        writer.write(step, queries, metrics | {f"time/{k}_s": v for k, v in (last.seconds | seconds).items()})

    def _stop_on_nan(self, step: int, batch: PreferenceBatch, metrics: dict[str, float]) -> None:
        """The state is still the one before the step: with the batch it is all of its inputs."""
        folder = self.folder / f"non_finite_step_{step}"
        batch, state = fetch((batch, self.state._replace(key=jax.random.key_data(self.state.key))))
        if mesh_lib.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / "batch.npz", **{k: v for k, v in batch._asdict().items() if v is not None})
            models.save(folder / "policy", self.assets.model, state.policy.params, None)
            leaves, _ = jax.tree_util.tree_flatten_with_path(state)
            np.savez(folder / "state.npz", **{jax.tree_util.keystr(k): v for k, v in leaves})  # pyright: ignore[reportArgumentType]
        bad = {k: v for k, v in metrics.items() if not np.isfinite(v)}
        raise FloatingPointError(
            f"step {step}: {bad or metrics['policy/loss']} is not finite; its inputs are in {folder}"
        )

    def _evaluate(self, writer: MetricWriter, bar: tqdm, step: int, queries: int, last: Step | None) -> None:
        start = time.perf_counter()
        cfg, assets = self.config, self.assets
        data = assets.eval_set
        responses, length = evaluate.greedy_responses(
            assets.task, self._sampler(1, 0.0), data.tokens, data.mask, cfg.eval.batch_size
        )  # fmt: skip
        metrics = evaluate.evaluate_policy(self.oracle, cfg.oracle.labels, data, responses, length)
        shown = {"win": f"{metrics['eval/win_rate_sft']:.3f}"}
        if self.method.learns_ensemble:
            metrics |= evaluate.ensemble_accuracy(self.state.ensemble.params, self.ordered_pairs)
            if cfg.eval.best_of > 1:
                metrics |= self._best_of(step)
            shown["ens_acc"] = f"{metrics['ensemble/accuracy_heldout']:.3f}"
        if last is not None:
            writer.write_samples(self._completions(queries, last))
        writer.write(step, queries, metrics | {"time/evaluate_s": time.perf_counter() - start})
        bar.set_postfix(shown)

    @functools.cached_property
    def ordered_pairs(self) -> Array:
        """The held-out pairs' features [N, 2, E] with the response that the oracle prefers first."""
        pairs, features = self.assets.pairs, self.assets.pair_features
        probability, answered = protocol.ask(self.oracle, pairs.prompts, pairs.sft, pairs.references)
        if not answered.all():
            probability, features = probability[answered], features[np.flatnonzero(answered)]
        return jnp.where(jnp.asarray(probability > 0.5)[:, None, None], features, features[:, ::-1])

    def _best_of(self, step: int) -> dict[str, float]:
        """Best-of-N inference (Sec. 6.2): the sample whose mean reward over the ensemble is highest."""
        cfg, assets = self.config, self.assets
        data = assets.eval_set

        def score(rows: np.ndarray, out: models.Responses) -> Array:
            texts = [data.prompts[row] for row in rows]
            features = assets.backbone(texts, data.tokens[rows], data.mask[rows], out)
            return member_rewards(self.state.ensemble.params, features).mean(0)

        key = step_keys(self.state.key, step).evaluate
        responses, length = evaluate.best_responses(
            assets.task, self._sampler(cfg.eval.best_of, cfg.train.temperature), score,
            data.tokens, data.mask, cfg.eval.batch_size, key,
        )  # fmt: skip
        metrics = evaluate.evaluate_policy(self.oracle, cfg.oracle.labels, data, responses, length)
        return {name.replace("eval/", "eval/best_of_"): value for name, value in metrics.items()}

    def _completions(self, queries: int, last: Step) -> list[dict[str, Any]]:
        """A few of the step's pairs in words (for people; nothing is trained on them)."""
        n = self.config.eval.num_samples
        batch = jax.tree.map(lambda x: x[:n], fetch(last.batch))
        rewards = member_rewards(self.state.ensemble.params, jnp.asarray(batch.features))
        probability = fetch(jax.nn.sigmoid(rewards[..., 0] - rewards[..., 1]).mean(0))
        prompts = self.assets.task.decode(batch.prompts, batch.prompt_mask)
        pairs = self.assets.task.decode(batch.tokens, batch.mask)
        return [
            {
                "queries": queries, "prompt": prompts[i], "chosen": pairs[i][0], "rejected": pairs[i][1],
                "labelled_by": "oracle" if batch.from_oracle[i] else "ensemble",
                "ensemble_probability": float(probability[i]) if self.method.learns_ensemble else None,
                "weight": float(batch.weight[i]), "length_chosen": int(batch.mask[i, 0].sum()),
                "length_rejected": int(batch.mask[i, 1].sum()),
            }
            for i in range(len(prompts))
        ]  # fmt: skip


propose = jax.jit(algorithm.propose, static_argnames=("strategy", "gamma", "gamma_mode", "synthetic_pairs"))
drop = jax.jit(algorithm.drop)
implicit_rewards = jax.jit(algorithm.implicit_rewards, static_argnums=0)
assign_labels = jax.jit(algorithm.assign_labels)
update = jax.jit(algorithm.update, static_argnums=0, donate_argnums=1)
member_rewards = jax.jit(heads.rewards)


@jax.jit
def count_distinct(candidates: Candidates) -> Array:
    """Mean number of distinct responses in S_t: what selection has to choose from."""
    tokens = jnp.where(candidates.mask, candidates.tokens, -1)
    equal = (tokens[:, :, None] == tokens[:, None]).all(-1)
    return jnp.mean((1.0 / equal.sum(-1)).sum(-1))


@functools.cache
def make_learner(
    model: models.Decoder,
    train: Any,  # a FrozenConfigDict, as the next is
    ensemble: Any,
    method: Method,
    optimism: float = 0.0,
) -> tuple[algorithm.Learner, heads.Head]:
    """The static half of a run: the same object for the same fields, so that jit compiles once."""
    options = inspect.signature(DAP_LOSSES[train.dap]).parameters
    learner = algorithm.Learner(
        model=model,
        policy_optimizer=policy_optimizer(train),
        ensemble_optimizer=optax.adam(ensemble.learning_rate),
        dap=train.dap,
        dap_options=tuple((name, train[name]) for name in options if name in train),
        optimism=optimism,
        micro_batch=train.micro_batch,
        token_chunk=train.token_chunk,
        learn_ensemble=method.learns_ensemble,
        ensemble_steps=ensemble.steps,
        ensemble_batch=ensemble.batch_size,
        regularization=ensemble.regularization,
        scale_by_data=ensemble.scale_by_data,
    )
    return learner, heads.Head(tuple(ensemble.hidden), ensemble.prior_scale)
