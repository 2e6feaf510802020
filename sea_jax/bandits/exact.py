"""An exact posterior over finitely many reward functions, by Bayes' rule."""

import dataclasses

import jax
import jax.numpy as jnp

from sea_jax.types import Array, EnsembleState, Experience, Params


@dataclasses.dataclass(frozen=True)
class FinitePosterior:
    """The posterior where the reward is one of H linear functions, each as probable as another at first.

    Its K members are draws. It has the interface of `ensemble.posterior.Posterior`.

    Attributes:
        num_members: K.
    """

    num_members: int

    def init(self, key: Array, feature_width: int, prior: Params) -> EnsembleState:
        """Draws the members from the prior.

        Args:
            key: [] key.
            feature_width: E.
            prior: {"weights": [H, E] f32}, one row for each reward function w · φ.
        """
        del feature_width
        log_weight = jnp.zeros(len(prior["weights"]))
        return EnsembleState(self._draw(key, prior, log_weight), prior, log_weight)

    def update(
        self, key: Array, state: EnsembleState, data: Experience
    ) -> tuple[EnsembleState, dict[str, Array]]:
        """Computes log p(D_t | w) = Σ_i a_i log σ(w · (φ(y+) − φ(y−))) for every w, and draws K of them."""
        weight = jnp.where(jnp.arange(len(data.weight)) < data.size, data.weight, 0.0)
        margin = (data.features[:, 0] - data.features[:, 1]) @ state.anchor["weights"].T  # [C, H]
        log_weight = weight @ jax.nn.log_sigmoid(margin)
        best = log_weight.max() / jnp.maximum(weight.sum(), 1.0)
        return EnsembleState(self._draw(key, state.anchor, log_weight), state.anchor, log_weight), {
            "ensemble/loss": -best
        }

    def _draw(self, key: Array, prior: Params, log_weight: Array) -> Params:
        """Draws heads that `heads.rewards` reads, {"out": {"kernel": [K, E, 1]}}."""
        chosen = jax.random.categorical(key, log_weight, shape=(self.num_members,))
        return {"out": {"kernel": prior["weights"][chosen][:, :, None]}}
