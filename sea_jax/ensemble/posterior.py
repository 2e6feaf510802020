"""Posteriors over rewards: how a run initialises one, and how it learns from D_t (Alg. 2, lines 1 and 9)."""

import dataclasses
from typing import Protocol

import optax

from sea_jax.ensemble import heads
from sea_jax.types import Array, EnsembleState, Experience, Params


class Posterior(Protocol):
    """A posterior over reward functions, of which K members are kept. Hashable, since it is static under jit.

    `heads.rewards` reads the members of every posterior, so that all strategies take all of them.
    """

    def init(self, key: Array, feature_width: int, prior: Params | None) -> EnsembleState:
        """Initialises K members from the prior (line 1).

        Args:
            key: [] key.
            feature_width: E.
            prior: trained parameters of the prior, if there are any.
        """
        ...

    def update(
        self, key: Array, state: EnsembleState, data: Experience
    ) -> tuple[EnsembleState, dict[str, Array]]:
        """Learns from D_t (line 9).

        Args:
            key: [] key.
            state: the posterior after step t − 1.
            data: D_t.

        Returns:
            The posterior after step t, and metrics [] f32, of which `ensemble/loss` is checked to be finite.
        """
        ...


@dataclasses.dataclass(frozen=True)
class HeadEnsemble:
    """K MLP heads that stay close to where each began: the paper's posterior (Eq. 8).

    Attributes:
        head: one member's module.
        num_members: K.
        optimizer: of each member.
        num_steps: optimizer steps per update, m.
        batch_size: pairs in each of them.
        regularization, scale_by_data: as in `heads.update`.
    """

    head: heads.Head
    num_members: int
    optimizer: optax.GradientTransformation
    num_steps: int = 5
    batch_size: int = 128
    regularization: float = 0.5
    scale_by_data: bool = True

    def init(self, key: Array, feature_width: int, prior: Params | None) -> EnsembleState:
        """Draws the members from pretrained heads [P, ...], or with random weights where there are none."""
        return heads.init(key, self.head, self.num_members, feature_width, self.optimizer, prior)

    def update(
        self, key: Array, state: EnsembleState, data: Experience
    ) -> tuple[EnsembleState, dict[str, Array]]:
        """Takes m optimizer steps of Eq. 8; see `heads.update`."""
        return heads.update(
            key, state, data, self.optimizer, num_steps=self.num_steps, batch_size=self.batch_size,
            regularization=self.regularization, scale_by_data=self.scale_by_data,
        )  # fmt: skip
