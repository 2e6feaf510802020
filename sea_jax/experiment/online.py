"""Measures the duels that the oracle was shown, as the users of an online system see them (Sec. 2.2, E&E)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sea_jax import evaluate
from sea_jax.oracles import protocol
from sea_jax.runtime.mesh import to_host
from sea_jax.train import Record, Run


class OnlineMeter:
    """Sums, over the steps of a run, the wins of the responses that were shown, and their regret."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict(wins=0.0, responses=0.0, regret=0.0)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes over the sums that `saved` returned; runs of older versions have no regret."""
        self._sums = {name: float(saved.get(name, 0.0)) for name in self._sums}

    def saved(self) -> dict[str, float]:
        """Returns the sums, as JSON."""
        return dict(self._sums)

    def measure(self, run: Run, record: Record) -> dict[str, float]:
        """Measures a step's duels; buys no label.

        Returns:
            Win rate against the references and regret, of this step and of all so far; what the config asks
            for and the task and the oracle allow.
        """
        if not record.shown or record.prompts.given:
            return {}
        return self._win_rate(run, record) | self._regret(run, record)

    def _win_rate(self, run: Run, record: Record) -> dict[str, float]:
        references = run.actor.task.references["train"]
        if not references or not measures_online(run):
            return {}
        rows = list(record.shown)
        won = evaluate.duel_wins(
            run.oracle, run.config.oracle.labels, [record.prompts.texts[row] for row in rows],
            list(record.shown.values()), [references[i] for i in record.prompts.rows[rows]],
        )  # fmt: skip
        self._sums["wins"] += float(won.sum())
        self._sums["responses"] += float(won.size)
        return {
            "duel/win_rate_reference": float(won.mean()),
            "duel/win_rate_reference_so_far": self._sums["wins"] / self._sums["responses"],
        }

    def _regret(self, run: Run, record: Record) -> dict[str, float]:
        if not run.config.eval.regret:
            return {}
        rows = list(record.shown)
        proposals = run.decode(*(to_host(x)[rows] for x in record.proposals))
        prompts = [record.prompts.texts[row] for row in rows]
        references = run.actor.task.references["train"]
        known = [[references[i]] for i in record.prompts.rows[rows]] if references else [[]] * len(rows)
        of_set, of_known = immediate_regret(
            run.oracle, prompts, list(record.shown.values()), proposals, known
        ).T
        self._sums["regret"] += float(of_known.sum())
        return {
            "duel/regret_of_set": float(of_set.mean()),
            "duel/regret": float(of_known.mean()),
            "duel/regret_so_far": self._sums["regret"],
        }


def immediate_regret(
    oracle: Any,
    prompts: list[str],
    pairs: list[list[str]],
    proposals: list[list[str]],
    known: list[list[str]],
) -> np.ndarray:
    """Computes how much reward the two responses of each duel lack: r*(y*) - (r*(y) + r*(y')) / 2.

    The best response y* is not known, so the best of some stands in for it, and the regret is a lower bound.

    References:
        Sec. 2.1, immediate regret, with the rewards of Eq. 4.

    Args:
        oracle: has `rewards`, which are read and not counted.
        prompts: n texts.
        pairs: the two responses of each duel.
        proposals: the proposal set S_t of each.
        known: further responses to each, as the reference.

    Returns:
        [n, 2] f64: against the best of S_t, and against the best of S_t and the known ones.
    """
    # The pair belongs to S_t, also where it was chosen before and S_t was sampled anew.
    texts = [[*pair, *own, *more] for pair, own, more in zip(pairs, proposals, known, strict=True)]
    repeated = [prompt for prompt, row in zip(prompts, texts, strict=True) for _ in row]
    rewards = np.asarray(oracle.rewards(repeated, [text for row in texts for text in row]), np.float64)
    found, ends = [], np.cumsum([len(row) for row in texts])
    for row, own in zip(np.split(rewards, ends[:-1]), proposals, strict=True):
        best = row[: 2 + len(own)].max(), row.max()
        found.append(np.array(best) - row[:2].mean())
    return np.array(found).reshape(-1, 2)


def measures_online(run: Run) -> bool:
    """Tells whether config.eval.online asks for the online win rate.

    'auto' measures it where the oracle is the task's own reward, which costs nothing. A judge is never asked:
    two more comparisons per duel would cost three times as much.
    """
    if isinstance(run.oracle, protocol.PartialOracle):
        return False
    online = run.config.eval.online
    return online == "yes" or (online == "auto" and run.config.oracle.kind == "task")
