"""The methods that a config can name: one row each, made of parts (`methods/method.py`)."""

from typing import Any

from sea_jax.methods import apl, between_labels, iterative, posterior_dpo, replay, rloo, selm, xpo
from sea_jax.methods.method import Method, all_of_reference, sea_reference_share, sea_responses
from sea_jax.methods.scorers import EnsembleScorer, OracleScorer

_PROPOSALS: dict[str, Any] = dict(num_responses=sea_responses, reference_share=sea_reference_share)
_ENSEMBLE: dict[str, Any] = dict(scorer=EnsembleScorer(), learns=("policy", "ensemble"), **_PROPOSALS)

# The preference labels train the posterior alone, and the posterior trains the policy.
_POSTERIOR: dict[str, Any] = dict(
    scorer=EnsembleScorer(), learns=("ensemble",), posterior="linear", section=between_labels.Rloo
)
_RLOO: dict[str, Any] = dict(improvement=rloo.RlooBetweenLabels(), **_POSTERIOR)
_RLHF: dict[str, Any] = _RLOO | dict(posterior="mlp")
_POOL: dict[str, Any] = dict(pool_factor=between_labels.pool_factor, pool_choice=between_labels.pool_choice)

METHODS = {
    "passive": Method(
        "passive online DAP", "compares two random samples; each batch of labels makes one policy update"
    ),
    "offline": Method(
        "offline DAP", "compares two samples of the starting policy", reference_share=all_of_reference
    ),
    "iterative": iterative.METHOD,
    "apl": apl.METHOD,
    "xpo": xpo.METHOD,
    "selm": selm.METHOD,
    "passive_ensemble": Method(
        "passive online DAP with an ensemble", "as passive, with a posterior for best-of-N",
        scorer=EnsembleScorer(), learns=("policy", "ensemble"),
    ),
    "frozen": Method(
        "frozen policy",
        "learns a posterior for best-of-N by Thompson draws from the starting policy's samples",
        strategy="ee_ts", scorer=EnsembleScorer(), num_responses=sea_responses,
        reference_share=all_of_reference, learns=("ensemble",),
    ),
    "sea": Method(
        "SEA", "compares by Thompson sampling from a posterior, which labels a share of the pairs itself",
        strategy="bai_ts", synthetic=True, **_ENSEMBLE,
    ),
    "sea_oracle_only": Method(
        "SEA without synthetic pairs", "compares by Thompson sampling from a posterior",
        strategy="bai_ts", **_ENSEMBLE,
    ),
    "sea_logits": Method(
        "SEA, variance of logits", "as SEA, with the second response chosen by the variance of logits",
        strategy="bai_ts_logits", synthetic=True, **_ENSEMBLE,
    ),
    "ee_ts": Method(
        "E&E-TS", "compares two Thompson draws, as where users see both responses",
        strategy="ee_ts", synthetic=True, **_ENSEMBLE,
    ),
    "uncertainty": Method(
        "Uncertainty", "compares the pair on which the posterior disagrees most",
        strategy="uncertainty", synthetic=True, **_ENSEMBLE,
    ),
    "infomax": Method(
        "InfoMax", "compares the pair whose outcome is least known", strategy="infomax", **_ENSEMBLE
    ),
    "bald": Method(
        "BALD", "compares the pair whose label tells most of the reward", strategy="bald", **_ENSEMBLE
    ),
    "borda_ucb": Method(
        "AE-Borda", "compares the response that may beat most others with a random one",
        strategy="borda_ucb", **_ENSEMBLE,
    ),
    "double_reverse_ts": Method(
        "DRTS", "compares the best response of a draw with the worst of another",
        strategy="double_reverse_ts", **_ENSEMBLE,
    ),
    "delta_ucb": Method(
        "DeltaUCB", "compares the pair of the largest possible gap", strategy="delta_ucb", **_ENSEMBLE
    ),
    "rlhf": Method(
        "RLHF", "learns a reward model from two random samples, and the policy from it by RLOO",
        **_RLHF,
    ),
    "rlhf_offline": Method(
        "RLHF on the starting policy's samples", "as rlhf, with two samples of the starting policy",
        reference_share=all_of_reference, **_RLHF,
    ),
    "posterior_rl": Method(
        "RLOO on the posterior",
        "compares the pairs of a pool that teach most; the policy learns from the posterior between labels",
        strategy="i_optimal", **_PROPOSALS, **_POOL, **_RLOO,
    ),
    "posterior_rl_infomax": Method(
        "RLOO on the posterior, InfoMax", "as posterior_rl, with the pair whose outcome is least known",
        strategy="infomax", **_PROPOSALS, **_POOL, **_RLOO,
    ),
    "posterior_rl_ts": Method(
        "RLOO on the posterior, BAI-TS", "as posterior_rl, with pairs chosen by Thompson sampling",
        strategy="bai_ts", **_PROPOSALS, **_POOL, **_RLOO,
    ),
    "posterior_rl_drts": Method(
        "RLOO on the posterior, DRTS", "as posterior_rl, with the best response of a draw against the worst",
        strategy="double_reverse_ts", **_PROPOSALS, **_POOL, **_RLOO,
    ),
    "posterior_rl_delta_ucb": Method(
        "RLOO on the posterior, DeltaUCB", "as posterior_rl, with the pair of the largest possible gap",
        strategy="delta_ucb", **_PROPOSALS, **_POOL, **_RLOO,
    ),
    "posterior_rl_random": Method(
        "RLOO on the posterior, random pairs", "as posterior_rl, but compares two random samples", **_RLOO
    ),
    "posterior_rl_offline": Method(
        "RLOO on the posterior, labels on the starting policy",
        "as posterior_rl, with all labels on samples of the starting policy, as a crowd can give them",
        strategy="infomax", num_responses=sea_responses, reference_share=all_of_reference, **_POOL, **_RLOO,
    ),
    "posterior_dpo": Method(
        "DPO on the posterior", "as posterior_rl, with preference updates on pairs of which it is sure",
        strategy="infomax", improvement=posterior_dpo.DpoBetweenLabels(), **_PROPOSALS, **_POOL, **_POSTERIOR,
    ),
    "passive_replay": Method(
        "passive online DAP, labels replayed", "as passive, with more updates on the labels bought so far",
        improvement=replay.ReplayLabels(), section=replay.Replay,
    ),
    "perfect_rl": Method(
        "bound: RLOO on a perfect reward model", "the updates of posterior_rl on the true reward: no method",
        learns=(), section=between_labels.Rloo, improvement=rloo.RlooBetweenLabels(rloo.OracleReward()),
    ),
    "ceiling": Method(
        "ceiling: perfect reward model", "the true reward chooses what is compared: no method",
        strategy="best_vs_random", scorer=OracleScorer(), num_responses=sea_responses,
    ),
}  # fmt: skip

# Sections of the config that methods bring.
SECTIONS = tuple(dict.fromkeys(method.section for method in METHODS.values() if method.section))

__all__ = ["METHODS", "SECTIONS", "Method"]
