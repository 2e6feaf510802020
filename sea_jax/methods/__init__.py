"""The methods that a config can name: one row each, made of parts (`methods/method.py`)."""

from typing import Any

from sea_jax.methods import apl, rloo, xpo
from sea_jax.methods.method import Method, sea_responses
from sea_jax.methods.scorers import EnsembleScorer, OracleScorer

_ENSEMBLE: dict[str, Any] = dict(
    scorer=EnsembleScorer(), num_responses=sea_responses, learns=("policy", "ensemble")
)

_POSTERIOR_RL: dict[str, Any] = dict(
    scorer=EnsembleScorer(), num_responses=sea_responses, learns=("ensemble",), posterior="linear",
    pool_factor=rloo.pool_factor, improvement=rloo.PosteriorRloo(), section=rloo.Rloo,
)  # fmt: skip
_RANDOM = {k: v for k, v in _POSTERIOR_RL.items() if k not in ("pool_factor", "num_responses")}

METHODS = {
    "passive": Method("passive online DAP"),
    "offline": Method("offline DAP", proposal="reference"),
    "apl": apl.METHOD,
    "xpo": xpo.METHOD,
    "sea": Method("SEA", strategy="bai_ts", synthetic=True, **_ENSEMBLE),
    "sea_oracle_only": Method("SEA without synthetic pairs", strategy="bai_ts", **_ENSEMBLE),
    "sea_logits": Method("SEA, variance of logits", strategy="bai_ts_logits", synthetic=True, **_ENSEMBLE),
    "ee_ts": Method("E&E-TS", strategy="ee_ts", synthetic=True, **_ENSEMBLE),
    "uncertainty": Method("Uncertainty", strategy="uncertainty", synthetic=True, **_ENSEMBLE),
    "posterior_rl": Method("RLOO on the posterior", strategy="infomax", **_POSTERIOR_RL),
    "posterior_rl_random": Method("RLOO on the posterior, random pairs", strategy="passive", **_RANDOM),
    "ceiling": Method(
        "ceiling: perfect reward model",
        strategy="best_vs_random",
        scorer=OracleScorer(),
        num_responses=sea_responses,
    ),
}

# Sections of the config that methods bring.
SECTIONS = tuple(dict.fromkeys(method.section for method in METHODS.values() if method.section))

__all__ = ["METHODS", "SECTIONS", "Method"]
