"""XPO: DPO with an optimism term (Xie et al., 2024; Eq. 19)."""

import dataclasses

from sea_jax.config.fields import Section, field


@dataclasses.dataclass(frozen=True)
class Xpo(Section):
    """XPO: the loss has a term in responses that the reference policy writes (Eq. 19)."""

    section_name = "xpo"
    alpha: float = field(5e-6, "weight of the optimism term, α", at_least=0)
