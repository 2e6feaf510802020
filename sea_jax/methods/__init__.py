"""The methods that a config can name: one row each."""

import dataclasses

from sea_jax.config.fields import Section
from sea_jax.methods.apl import Apl
from sea_jax.methods.xpo import Xpo
from sea_jax.types import Config


@dataclasses.dataclass(frozen=True)
class Method:
    """What tells one method from another.

    Attributes:
        strategy: a row of `ensemble.STRATEGIES`.
        active: proposes more than two responses and scores them.
        synthetic: after burn-in, a share 1 − γ of the duels is labelled by sampled heads.
        label: in tables and figures.
        scorer: what scores an active method's responses: 'ensemble'; 'implicit', DPO's implicit reward (APL);
            'oracle', its own reward in the ensemble's place: a ceiling, not a method.
        offline: π_ref writes all responses, as in a data set that was collected before (App. E).
        pooled: of a pool of prompts, the batch is those of highest predictive entropy (APL).
        optimistic: the loss has the term of Eq. 19 in y_ref, which π_ref writes for every prompt (XPO).
    """

    strategy: str
    active: bool
    synthetic: bool
    label: str
    scorer: str = "ensemble"
    offline: bool = False
    pooled: bool = False
    optimistic: bool = False

    @property
    def learns_ensemble(self) -> bool:
        return self.active and self.scorer == "ensemble"

    @property
    def needs_dpo(self) -> bool:
        """Whether it stands on DPO's implicit reward, and means nothing with another loss (Sec. 6.1)."""
        return self.optimistic or self.scorer == "implicit"

    def num_responses(self, config: Config) -> int:
        """M: responses to each prompt, of which two meet."""
        if not self.active:
            return 2
        return config.apl.num_responses if self.scorer == "implicit" else config.sea.num_responses

    def alpha(self, config: Config) -> float:
        """α of Eq. 19: 0 but for an optimistic method."""
        return config.xpo.alpha if self.optimistic else 0.0


METHODS = {
    "passive": Method("passive", False, False, "passive online DAP"),
    "offline": Method("passive", False, False, "offline DAP", offline=True),
    "apl": Method("max_margin", True, False, "APL", scorer="implicit", pooled=True),
    "xpo": Method("passive", False, False, "XPO", optimistic=True),
    "sea": Method("bai_ts", True, True, "SEA"),
    "sea_oracle_only": Method("bai_ts", True, False, "SEA without synthetic pairs"),
    "sea_logits": Method("bai_ts_logits", True, True, "SEA, variance of logits"),
    "ee_ts": Method("ee_ts", True, True, "E&E-TS"),
    "uncertainty": Method("uncertainty", True, True, "Uncertainty"),
    "ceiling": Method("best_vs_random", True, False, "ceiling: perfect reward model", scorer="oracle"),
}

# Sections of the config that methods bring.
SECTIONS: tuple[type[Section], ...] = (Apl, Xpo)
