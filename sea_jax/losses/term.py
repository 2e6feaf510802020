"""The interface of a term that a method adds to the policy's loss."""

from typing import Protocol

from sea_jax.types import Array


class LossTerm(Protocol):
    """A term that a method adds to F (Eq. 9). Hashable, since it is static under jit."""

    @property
    def num_extra(self) -> int:
        """X: the responses of π_ref to each prompt that the term reads."""
        ...

    def loss(self, extra_logps: Array) -> Array:
        """Returns the term of each prompt: log π_θ of its further responses, [B, X] f32 nats -> [B] f32."""
        ...

    def metrics(self, extra_logps: Array, weight: Array) -> dict[str, Array]:
        """Returns [] f32 metrics from the same log-probs and the duels' weight [B]."""
        ...
