"""XPO: online DPO with an optimistic term, which makes the policy leave the responses of π_ref.

References:
    Eq. 19; Xie et al. (2024), arXiv:2405.21046.
"""

import dataclasses

from sea_jax.config.fields import Section, field
from sea_jax.losses import mean_or_nan, optimism
from sea_jax.methods.method import Method
from sea_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Optimism:
    """α log π_θ(y_ref), y_ref ~ π_ref, a response to each prompt (Eq. 19)."""

    alpha: float
    num_extra: int = 1

    def loss(self, extra_logps: Array) -> Array:
        """Returns the term of each prompt: [B, 1] f32 nats -> [B] f32."""
        return optimism(extra_logps[:, 0], self.alpha)

    def metrics(self, extra_logps: Array, weight: Array) -> dict[str, Array]:
        """Returns the mean log π_θ(y_ref) over the duels that teach, in nats."""
        return {"policy/log_prob_y_ref": mean_or_nan(extra_logps[:, 0], weight)}


@dataclasses.dataclass(frozen=True)
class Xpo(Section):
    """The config fields of XPO."""

    section_name = "xpo"
    alpha: float = field(5e-6, "weight of the optimism term, α", at_least=0)


METHOD = Method(
    "XPO", "as passive, with an optimistic term in the loss",
    term=lambda config: Optimism(config.xpo.alpha), losses=("dpo",), section=Xpo,
)  # fmt: skip
