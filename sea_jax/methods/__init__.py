"""The methods that a config can name: one row each, made of parts (`methods/method.py`)."""

from typing import Any

from sea_jax.methods import apl, rloo, xpo
from sea_jax.methods.method import Method, sea_responses
from sea_jax.methods.scorers import EnsembleScorer, OracleScorer

_ENSEMBLE: dict[str, Any] = dict(
    scorer=EnsembleScorer(), num_responses=sea_responses, learns=("policy", "ensemble")
)

# The preference labels train the posterior alone, and the posterior trains the policy.
_RLOO: dict[str, Any] = dict(
    scorer=EnsembleScorer(), learns=("ensemble",), posterior="linear", improvement=rloo.PosteriorRloo(),
    section=rloo.Rloo,
)  # fmt: skip

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
    "posterior_rl": Method(
        "RLOO on the posterior",
        strategy="infomax",
        num_responses=sea_responses,
        pool_factor=rloo.pool_factor,
        **_RLOO,
    ),
    "posterior_rl_random": Method("RLOO on the posterior, random pairs", **_RLOO),
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
