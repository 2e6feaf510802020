"""The methods that a config can name: one row each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """What tells one method from another.

    Attributes:
        strategy: a row of `ensemble.STRATEGIES`.
        active: proposes config.sea.num_responses responses and scores them; otherwise two.
        synthetic: after burn-in, a share 1 − γ of the duels is labelled by sampled heads.
        offline: π_ref writes all responses, as in a data set that was collected before (App. E).
        perfect: the oracle's own reward stands in the ensemble's place: a ceiling, not a method.
        label: in tables and figures.
    """

    strategy: str
    active: bool
    synthetic: bool
    label: str
    perfect: bool = False
    offline: bool = False

    @property
    def learns_ensemble(self) -> bool:
        return self.active and not self.perfect


METHODS = {
    "passive": Method("passive", False, False, "passive online DAP"),
    "offline": Method("passive", False, False, "offline DAP", offline=True),
    "sea": Method("bai_ts", True, True, "SEA"),
    "sea_oracle_only": Method("bai_ts", True, False, "SEA without synthetic pairs"),
    "sea_logits": Method("bai_ts_logits", True, True, "SEA, variance of logits"),
    "ee_ts": Method("ee_ts", True, True, "E&E-TS"),
    "uncertainty": Method("uncertainty", True, True, "Uncertainty"),
    "ceiling": Method("best_vs_random", True, False, "ceiling: perfect reward model", perfect=True),
}

# In place of a method: each trains one model and ends; see `supervised.COMMANDS`.
ALONE = ("sft", "rm")
