"""Bayesian logistic regression on frozen features: a posterior that is right when labels are few.

The reward is r(x, y) = w·φ(x, y) with w ~ N(m⁰, Σ⁰), and a label has the likelihood of Eq. 3,
P(y+ ≻ y−) = σ(s w·(φ(y+) − φ(y−))). The posterior is approximated around its mode by a Gaussian (Laplace;
Bishop, 2006, Sec. 4.5). It has one mode, so that nothing depends on where an optimizer begins, and its
uncertainty is that of the labels, where heads trained by gradient descent are far too sure.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.types import Array, EnsembleState, Experience, Params


@dataclasses.dataclass(frozen=True)
class LinearPosterior:
    """A Gaussian over linear rewards, of which K draws are the members.

    The draws are centred, so that the mean reward of the members is the posterior mean's to rounding.

    Attributes:
        num_members: K.
        prior_scale: standard deviation of a reward under the isotropic prior, for features of unit variance;
            of a fitted prior a factor of its standard deviations.
        sharpness: s, the factor of a reward's logits.
        newton_steps: steps of Newton's method from the last mode.
        step_lengths: how many lengths of a step are tried: 1, ½, ¼, …
    """

    num_members: int
    prior_scale: float = 1.0
    sharpness: float = 1.0
    newton_steps: int = 8
    step_lengths: int = 17

    def init(self, key: Array, feature_width: int, prior: Params | None) -> EnsembleState:
        """Draws the members from the prior.

        Args:
            key: [] key.
            feature_width: E.
            prior: {"mean": [E] f32, "precision": [E, E] f32}; None: N(0, I / E).
        """
        if prior is None:
            prior = {"mean": jnp.zeros(feature_width), "precision": jnp.eye(feature_width) * feature_width}
        mean, precision = jnp.asarray(prior["mean"]), jnp.asarray(prior["precision"]) / self.prior_scale**2
        anchor, mode = ({"mean": jnp.array(mean), "precision": jnp.array(precision)} for _ in range(2))
        return EnsembleState(draw(key, mode, self.num_members), anchor, mode)

    def update(
        self, key: Array, state: EnsembleState, data: Experience
    ) -> tuple[EnsembleState, dict[str, Array]]:
        """Fits the mode to all of D_t and draws K new members; an empty D_t gives draws of the prior."""
        difference = data.features[:, 0] - data.features[:, 1]
        weight = jnp.where(jnp.arange(len(data.weight)) < data.size, data.weight, 0.0)
        mean, precision, loss = laplace(
            state.anchor, state.opt_state["mean"], self.sharpness * difference, weight, self.newton_steps,
            self.step_lengths,
        )  # fmt: skip
        mode = {"mean": mean, "precision": precision}
        shift = mean - state.anchor["mean"]
        metrics = {
            "ensemble/loss": loss / jnp.maximum(weight.sum(), 1.0),
            "ensemble/drift": shift @ state.anchor["precision"] @ shift,
        }
        return EnsembleState(draw(key, mode, self.num_members), state.anchor, mode), metrics


def draw(key: Array, gaussian: Params, num_members: int) -> Params:
    """Draws K weights whose mean is the Gaussian's.

    Args:
        key: [] key.
        gaussian: {"mean": [E] f32, "precision": [E, E] f32}.
        num_members: K; a single member is the mean.

    Returns:
        Heads without a hidden layer, {"out": {"kernel": [K, E, 1]}}, which `heads.rewards` reads.
    """
    noise = jax.random.normal(key, (num_members, len(gaussian["mean"])))
    noise = noise - noise.mean(0)
    noise *= (num_members / max(num_members - 1, 1)) ** 0.5  # centring took a share of 1 / K of the variance
    factor = jnp.linalg.cholesky(gaussian["precision"])  # Λ = F Fᵀ, so that F⁻ᵀ z has covariance Λ⁻¹
    noise = jax.scipy.linalg.solve_triangular(factor, noise.T, lower=True, trans="T").T
    return {"out": {"kernel": (gaussian["mean"] + noise)[:, :, None]}}


def laplace(
    prior: Params, start: Array, difference: Array, weight: Array, newton_steps: int, step_lengths: int = 17
) -> tuple[Array, Array, Array]:
    """Finds the mode of the posterior over w by Newton's method, and its precision there.

    Minimises Σ_i a_i log(1 + exp(−w·d_i)) + ½ (w − m⁰)ᵀ Λ⁰ (w − m⁰), which is convex. Of each step the
    longest length is taken at which the sum does not rise, and none where all do.

    Args:
        prior: {"mean": m⁰ [E], "precision": Λ⁰ [E, E]}.
        start: [E] f32, where to begin.
        difference: d [C, E] f32, s (φ(y+) − φ(y−)).
        weight: a [C] f32, 0 for a row that is no label.
        newton_steps: number of steps.
        step_lengths: number of lengths that are tried.

    Returns:
        The mode [E]; there the precision Λ⁰ + Σ_i a_i σ(w·d_i) σ(−w·d_i) d_i d_iᵀ [E, E], and the sum [].
    """
    lengths = jnp.asarray(0.5 ** np.arange(step_lengths), jnp.float32)[:, None]

    def loss(margin: Array, shift: Array, pull: Array) -> Array:
        """Returns the sums [...] of margins w·d [..., C], w − m⁰ [..., E] and Λ⁰ (w − m⁰) [..., E]."""
        return jax.nn.softplus(-margin) @ weight + 0.5 * (shift * pull).sum(-1)

    def precision(margin: Array) -> Array:
        curvature = weight * jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
        return prior["precision"] + (difference * curvature[:, None]).T @ difference

    def at(w: Array) -> tuple[Array, Array, Array]:
        shift = w - prior["mean"]
        return difference @ w, shift, prior["precision"] @ shift

    def step(w: Array, _: None) -> tuple[Array, None]:
        margin, shift, pull = at(w)
        gradient = pull - (weight * jax.nn.sigmoid(-margin)) @ difference
        direction = jax.scipy.linalg.solve(precision(margin), gradient, assume_a="pos")
        # Margins and Λ⁰ w are linear in w, so that a length costs no product with d.
        along = (
            lengths * (difference @ direction),
            lengths * direction,
            lengths * (prior["precision"] @ direction),
        )
        losses = loss(margin - along[0], shift - along[1], pull - along[2])
        falls = losses <= loss(margin, shift, pull)
        return jnp.where(falls.any(), w - lengths[jnp.argmax(falls)] * direction, w), None

    mode, _ = jax.lax.scan(step, start, None, length=newton_steps)
    margin, shift, pull = at(mode)
    return mode, precision(margin), loss(margin, shift, pull)
