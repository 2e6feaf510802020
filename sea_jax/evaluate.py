"""How good a policy is: win rates on fixed prompts (App. F.1, Metrics), and the ensemble's accuracy."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sea_jax.ensemble import heads
from sea_jax.oracles import protocol
from sea_jax.runtime.mesh import to_host
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Params


class EvalSet(NamedTuple):
    """Fixed prompts, and what the policy is measured against there."""

    prompts: tuple[str, ...]
    tokens: np.ndarray  # [N, L] int32
    mask: np.ndarray  # [N, L] bool
    references: tuple[str, ...]  # none where the task has none
    sft: tuple[str, ...]  # the starting policy's greedy responses


def wins(probability: np.ndarray, mode: str) -> np.ndarray:
    """The share of the comparison each first response wins.

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
    """Of the responses sampled for every prompt, the one of highest score; their mean length in tokens.

    Args:
        task: decodes.
        sample: (tokens [batch, L], mask, key) -> Responses [batch, M, T].
        score: (rows [batch] of the prompts, Responses) -> [batch, M] f32; the lowest index wins a tie.
        tokens, mask: [N, L].
        batch: prompts at once; the last batch is filled up with its first prompts, for one shape.
        key: [] key.

    Returns:
        N texts; tokens a response, EOS in.
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
    """`best_responses` where a greedy `sample` gives one response a prompt."""
    alone = lambda *_: np.zeros((batch, 1))  # noqa: E731
    return best_responses(task, sample, alone, tokens, mask, batch, jax.random.key(0))


def evaluate_policy(
    oracle, mode: str, data: EvalSet, responses: Sequence[str], mean_length: float
) -> dict[str, float]:
    """Win rate against the starting policy and the references. Buys no label.

    Args:
        oracle: the preference oracle; its probabilities are read, not counted. What it leaves without an
            answer is left out.
        mode: as `wins`.
        data: the prompts and opponents.
        responses: N texts, one a prompt.
        mean_length: tokens.

    Returns:
        Metrics; `_se` is the standard error over prompts. Not a number where nothing was answered.
    """
    metrics = {"eval/mean_length": mean_length}
    for name, opponent in (("sft", data.sft), ("reference", data.references)):
        if not opponent:
            continue
        probability, answered = protocol.ask(oracle, data.prompts, responses, opponent)
        won = wins(probability[answered], mode)
        metrics[f"eval/win_rate_{name}"] = _mean(won)
        metrics[f"eval/win_rate_{name}_se"] = (
            float(won.std(ddof=1) / np.sqrt(len(won))) if len(won) > 1 else np.nan
        )
    if hasattr(oracle, "rewards"):
        metrics["eval/reward"] = float(oracle.rewards(data.prompts, responses).mean())
    return metrics


def duel_wins(
    oracle, mode: str, prompts: Sequence[str], pairs: Sequence[Sequence[str]], references: Sequence[str]
) -> np.ndarray:
    """How the responses shown to the oracle fare against the references: the E&E setting's metric.

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


def ensemble_accuracy(params: Params, features: Array) -> dict[str, float]:
    """The posterior on held-out pairs ordered by the oracle.

    Args:
        params: heads, leaves [K, ...].
        features: [N, 2, E] f32, axis 1 is (y+, y−).

    Returns:
        Accuracy of the mean preference, and its NLL in nats.
    """
    rewards = heads.rewards(params, features)
    probability = to_host(jax.nn.sigmoid(rewards[..., 0] - rewards[..., 1]).mean(0))
    return {
        "ensemble/accuracy_heldout": _mean(probability > 0.5),
        "ensemble/nll_heldout": _mean(-np.log(np.maximum(probability, 1e-6))),
    }


def _mean(values: np.ndarray) -> float:
    """Not a number where there is none: a judge may leave every comparison without an answer."""
    return float(values.mean()) if values.size else np.nan
