"""SELM: XPO's optimistic term with a weight in units of the implicit reward.

References:
    Zhang et al. (2024a), arXiv:2405.19332: DPO's loss plus α β log π_θ(y'), y' ~ π_ref. In theirs π_ref is
    the policy of the last of a few iterations; here it stays the starting policy, as in all methods.
"""

import dataclasses

from sea_jax.config.fields import Section, field
from sea_jax.methods.method import Method
from sea_jax.methods.xpo import Optimism


@dataclasses.dataclass(frozen=True)
class Selm(Section):
    """The config fields of SELM."""

    section_name = "selm"
    alpha: float = field(1e-3, "weight of the optimism term, in units of the implicit reward, α", at_least=0)


METHOD = Method(
    "SELM", "as xpo, with the optimistic term weighted by α β",
    term=lambda config: Optimism(config.selm.alpha * config.train.beta), losses=("dpo",), section=Selm,
)  # fmt: skip
