"""Evaluation: win rates on fixed prompts (App. F.1, Metrics), and the ensemble's accuracy."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.actors.sampler import Sampler, VersionedParams, sample_now
from sea_jax.ensemble import heads
from sea_jax.ensemble.calibration import expected_calibration_error
from sea_jax.losses import sequence_logprobs
from sea_jax.methods.scorers import member_rewards
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses
from sea_jax.oracles import protocol
from sea_jax.runtime.mesh import to_host
from sea_jax.state import step_keys
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Config, Params, SeaState


class EvalSet(NamedTuple):
    """Fixed prompts and the responses that the policy is measured against."""

    prompts: tuple[str, ...]
    tokens: np.ndarray  # [N, L] int32
    mask: np.ndarray  # [N, L] bool
    references: tuple[str, ...]  # empty where the task has none
    sft: tuple[str, ...]  # the starting policy's greedy responses


class HeldoutPairs(NamedTuple):
    """Pairs of samples of the starting policy, on which the ensemble's accuracy is measured."""

    prompts: tuple[str, ...]  # N
    first: tuple[str, ...]
    second: tuple[str, ...]
    features: Array  # [N, 2, E] f32, of first and second


def wins(probability: np.ndarray, mode: str) -> np.ndarray:
    """Computes the share of each comparison that the first response wins.

    Args:
        probability: [N] f64, P(first ≻ second | x).
        mode: 'threshold' counts 1, a tie 1/2; 'bernoulli' counts P.

    Returns:
        [N] f64 in [0, 1].
    """
    if mode == "bernoulli":
        return np.asarray(probability)
    return np.where(probability == 0.5, 0.5, probability > 0.5)


def best_responses(
    task: Task, sample: Callable, score: Callable,
    tokens: np.ndarray, mask: np.ndarray, batch: int, key: Array,
) -> tuple[tuple[str, ...], float]:  # fmt: skip
    """Samples responses to every prompt and keeps the one of highest score.

    Args:
        task: decodes.
        sample: (tokens [batch, L], mask, key) -> Responses [batch, M, T].
        score: (rows [batch] of the prompts, Responses) -> [batch, M] f32; the lowest index wins a tie.
        tokens, mask: [N, L].
        batch: prompts at once; the last batch is filled up with the first prompts, to keep one shape.
        key: [] key.

    Returns:
        N texts; their mean length in tokens, EOS included.
    """
    texts, lengths = [], []
    for start, rows, kept in padded_batches(len(tokens), batch):
        out = sample(tokens[rows], mask[rows], jax.random.fold_in(key, start))
        best = np.arange(batch), to_host(score(rows, out)).argmax(-1)
        out_tokens, out_mask = (x[best] for x in to_host((out.tokens, out.mask)))
        texts += task.decode(out_tokens, out_mask)[:kept]
        lengths += out_mask.sum(-1)[:kept].tolist()
    return tuple(texts), float(np.mean(lengths))


def greedy_responses(
    task: Task, sample: Callable, tokens: np.ndarray, mask: np.ndarray, batch: int
) -> tuple[tuple[str, ...], float]:
    """Calls `single_responses` with a greedy `sample`, which reads no key."""
    return single_responses(task, sample, tokens, mask, batch, jax.random.key(0))


def single_responses(
    task: Task, sample: Callable, tokens: np.ndarray, mask: np.ndarray, batch: int, key: Array
) -> tuple[tuple[str, ...], float]:
    """Calls `best_responses` with a `sample` that gives one response per prompt."""
    alone = lambda *_: np.zeros((batch, 1))  # noqa: E731
    return best_responses(task, sample, alone, tokens, mask, batch, key)


def evaluate_policy(
    oracle, mode: str, data: EvalSet, responses: Sequence[str], mean_length: float
) -> tuple[dict[str, float], np.ndarray | None]:
    """Computes win rates against the starting policy and the references. Buys no label.

    Args:
        oracle: the preference oracle; its probabilities are read, not counted, and comparisons that it does
            not answer are left out.
        mode: as `wins`.
        data: the prompts and opponents.
        responses: N texts, one per prompt.
        mean_length: tokens.

    Returns:
        Metrics; `_se` is the standard error over prompts; NaN where nothing was answered. The responses'
        rewards [N] f32, None from an oracle without rewards.
    """
    metrics, rewards = {"eval/mean_length": mean_length}, None
    for name, opponent in (("sft", data.sft), ("reference", data.references)):
        if not opponent:
            continue
        probability, answered = protocol.compare(oracle, data.prompts, responses, opponent)
        won = wins(probability[answered], mode)
        metrics[f"eval/win_rate_{name}"] = _mean(won)
        metrics[f"eval/win_rate_{name}_se"] = (
            float(won.std(ddof=1) / np.sqrt(len(won))) if len(won) > 1 else np.nan
        )
    if hasattr(oracle, "rewards"):
        rewards = oracle.rewards(data.prompts, responses)
        metrics["eval/reward"] = float(rewards.mean())
    return metrics, rewards


def duel_wins(
    oracle, mode: str, prompts: Sequence[str], pairs: Sequence[Sequence[str]], references: Sequence[str]
) -> np.ndarray:
    """Computes how the responses shown to the oracle fare against the references: the E&E setting's metric.

    References:
        App. F.1, Metrics: the "online" win rate of the dueling responses.

    Args:
        oracle: the preference oracle; its probabilities are read, not counted.
        mode: as `wins`.
        prompts: n texts.
        pairs: n pairs (y, y').
        references: n texts, the prompts' own.

    Returns:
        [n, 2] f64, the share of the comparison with the reference that y and y' win.
    """
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    probability = oracle.probability([*prompts, *prompts], [*first, *second], [*references, *references])
    return wins(probability, mode).reshape(2, -1).T


@functools.partial(jax.jit, static_argnums=(0, 1))
def log_ratio(
    model: Decoder, token_chunk: int, ref_params: Params, params: Params,
    tokens: Array, mask: Array, responses: Responses,
) -> Array:  # fmt: skip
    """Computes log π_θ(y|x) − log π_ref(y|x).

    Args:
        model: of both policies.
        token_chunk: as config.train.token_chunk.
        ref_params, params: π_ref and π_θ.
        tokens, mask: prompts [b, L].
        responses: [b, M, T].

    Returns:
        [b, M] f32, nats.
    """
    of = lambda p: sequence_logprobs(  # noqa: E731
        model, p, tokens, mask, responses.tokens, responses.mask, token_chunk
    )
    return of(params) - of(ref_params)


def ensemble_accuracy(params: Params, features: Array) -> dict[str, float]:
    """Measures the posterior on held-out pairs that the oracle ordered.

    Args:
        params: heads, leaves [K, ...].
        features: [N, 2, E] f32, axis 1 is (y+, y−).

    Returns:
        Accuracy of the mean preference, its NLL in nats, its expected calibration error, and the share of the
        heads that prefer the response which most heads prefer.
    """
    rewards = heads.rewards(params, features)
    margins = to_host(rewards[..., 0] - rewards[..., 1])  # [K, N]
    probability = to_host(jax.nn.sigmoid(margins).mean(0))
    prefers_chosen = (margins > 0).mean(0)
    # The likelier response of each pair, so that the order of the pairs tells nothing.
    confidence = np.clip(np.maximum(probability, 1 - probability), 0, 1)
    return {
        "ensemble/accuracy_heldout": _mean(probability > 0.5),
        "ensemble/nll_heldout": _mean(-np.log(np.maximum(probability, 1e-6))),
        "ensemble/ece_heldout": expected_calibration_error(confidence, probability > 0.5),
        "ensemble/agreement_heldout": _mean(np.maximum(prefers_chosen, 1 - prefers_chosen)),
    }


@dataclasses.dataclass(eq=False)
class Evaluator:
    """Measures a policy and its ensemble on fixed prompts and pairs; buys no label.

    Attributes:
        config: the method's.
        task: decodes.
        sampler: samples from the policy.
        oracle: its probabilities are read, not counted.
        backbone: an `ensemble.features.Extractor`, for best-of-N.
        eval_set: prompts and opponents.
        pairs: held-out pairs; None for a method without an ensemble.
        log_ratio: (params, tokens [b, L], mask, Responses [b, M, T]) -> [b, M] f32, log π_θ − log π_ref.
        evaluated: the greedy responses of the first and of the last call, each with their rewards.
    """

    config: Config
    task: Task
    sampler: Sampler
    oracle: Any
    backbone: Any
    eval_set: EvalSet
    pairs: HeldoutPairs | None
    log_ratio: Callable[..., Array]
    evaluated: list[tuple[Sequence[str], np.ndarray | None]] = dataclasses.field(default_factory=list)

    def __call__(self, state: SeaState, policy: VersionedParams, step: int) -> dict[str, float]:
        """Measures the greedy policy and, where there is an ensemble, its accuracy and best-of-N."""
        config, data = self.config, self.eval_set
        responses, length = greedy_responses(
            self.task, self._sample(policy, 1, 0.0), data.tokens, data.mask, config.eval.batch_size
        )
        metrics, rewards = evaluate_policy(self.oracle, config.oracle.labels, data, responses, length)
        self.evaluated = [*self.evaluated[:1], (responses, rewards)]
        if config.eval.kl_samples:
            metrics |= self.kl(policy, step_keys(state.key, step).evaluate)
        if state.ensemble is not None:
            metrics |= ensemble_accuracy(state.ensemble.params, self.ordered_pairs)
            if config.eval.best_of > 1:
                key = step_keys(state.key, step).evaluate
                metrics |= self.best_of(state.ensemble.params, policy, key)
        return metrics

    def before_and_after(self) -> list[dict[str, Any]]:
        """Returns each prompt with the responses of the first and of the last call, for people to read.

        Where the oracle has rewards, those of both are beside them. The oracle is not asked again.
        """
        columns: dict[str, Any] = {"prompt": self.eval_set.prompts}
        for name, (responses, rewards) in zip(("before", "after"), self.evaluated, strict=True):
            columns[name] = responses
            if rewards is not None:
                columns[f"reward_{name}"] = rewards.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @functools.cached_property
    def ordered_pairs(self) -> Array:
        """Returns the held-out pairs' features [N, 2, E] with the oracle's preferred response first."""
        assert self.pairs is not None
        prompts, first, second, features = self.pairs
        probability, answered = protocol.compare(self.oracle, prompts, first, second)
        if not answered.all():
            probability, features = probability[answered], features[np.flatnonzero(answered)]
        return jnp.where(jnp.asarray(probability > 0.5)[:, None, None], features, features[:, ::-1])

    def kl(self, policy: VersionedParams, key: Array) -> dict[str, float]:
        """Estimates KL(π_θ ‖ π_ref) in nats per response, from samples at temperature 1.

        The mean log-ratio of the samples has no bias. Its standard error is that over prompts.
        """
        data, size, ratios = self.eval_set, self.config.eval.batch_size, []
        sample = self._sample(policy, self.config.eval.kl_samples, 1.0)
        for start, rows, kept in padded_batches(len(data.tokens), size):
            prompts = data.tokens[rows], data.mask[rows]
            responses = sample(*prompts, jax.random.fold_in(key, start))
            ratios.append(to_host(self.log_ratio(policy.params, *prompts, responses)).mean(-1)[:kept])
        ratio = np.concatenate(ratios).astype(np.float64)
        error = float(ratio.std(ddof=1) / np.sqrt(len(ratio))) if len(ratio) > 1 else np.nan
        return {"eval/kl": float(ratio.mean()), "eval/kl_se": error}

    def best_of(self, heads_params: Params, policy: VersionedParams, key: Array) -> dict[str, float]:
        """Measures best-of-N inference: the sample of highest mean reward over the heads (Sec. 6.2)."""
        config, data = self.config, self.eval_set

        def score(rows: np.ndarray, responses: Responses) -> Array:
            texts = [data.prompts[row] for row in rows]
            features = self.backbone(texts, data.tokens[rows], data.mask[rows], responses)
            return member_rewards(heads_params, features).mean(0)

        responses, length = best_responses(
            self.task, self._sample(policy, config.eval.best_of, config.train.temperature), score,
            data.tokens, data.mask, config.eval.batch_size, key,
        )  # fmt: skip
        metrics, _ = evaluate_policy(self.oracle, config.oracle.labels, data, responses, length)
        return {name.replace("eval/", "eval/best_of_"): value for name, value in metrics.items()}

    def _sample(self, policy: VersionedParams, num_responses: int, temperature: float) -> Callable[..., Any]:
        """Returns (tokens [B, L], mask, key) -> Responses [B, num_responses, T] of the policy."""
        return functools.partial(
            sample_now, self.sampler, policy, num_responses=num_responses, temperature=temperature
        )


def _mean(values: np.ndarray) -> float:
    """Returns the mean; NaN where there is no value, as a judge may leave every comparison unanswered."""
    return float(values.mean()) if values.size else np.nan
