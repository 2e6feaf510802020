"""A method as a row of parts: which prompts, what scores, which duel, who labels, what learns.

The parts are small objects behind the interfaces below. A new combination of parts is a row of
`methods.METHODS`; a new part is a class in a file of its own, as `methods/apl.py` and `methods/xpo.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
import optax

from sea_jax.algorithm import UpdateSettings
from sea_jax.config.fields import Section
from sea_jax.losses import LossTerm
from sea_jax.models.generate import Responses
from sea_jax.types import Array, Config, Params, PreferenceBatch, PromptBatch, SeaState


class Prompts(NamedTuple):
    """A batch of prompts, on the devices and on the host."""

    batch: PromptBatch
    texts: list[str]  # B
    rows: np.ndarray  # [B] int64, their rows in the train split; −1: of a duel whose label exists already

    @property
    def given(self) -> bool:
        """True if the step's duels and labels exist already; its two responses are the given ones."""
        return bool(self.rows[0] < 0)


class ScoringContext(Protocol):
    """The parts of a run that a scorer may read; `train.Run` is one."""

    state: SeaState
    ref_params: Params
    settings: UpdateSettings
    oracle: Any
    backbone: Callable[..., Array]

    def decode(self, tokens: Any, mask: Any) -> list:
        """Decodes responses [B, M, T] to B lists of M texts."""
        ...


class Scorer(Protocol):
    """Gives every response of S_t its rewards, from which a strategy chooses (lines 5-7)."""

    @property
    def reads_oracle(self) -> bool:
        """True if it reads the oracle's own rewards, which people and judges do not have."""
        ...

    def score(
        self, context: ScoringContext, prompts: Prompts, responses: Responses
    ) -> tuple[Array | None, Array]:
        """Returns features [B, M, E] f32 (None without an ensemble) and rewards [K, B, M] f32."""
        ...

    def trace(self, context: Any, prompts: PromptBatch, tokens: Any, mask: Any) -> Any:
        """Traces the scorer's own program on abstract arrays, for `launch.plan`; None if it has none."""
        ...


class Samples(NamedTuple):
    """The samples that a prompt selector draws in a step."""

    num_prompts: int
    num_responses: int  # to each prompt
    temperature: float


class Choice(NamedTuple):
    """The prompts of a step, as a selector chose them."""

    rows: np.ndarray  # [B] int64, rows of the train split
    metrics: dict[str, float]
    seconds: dict[str, float]  # waited per stage


class PromptSelector(Protocol):
    """Chooses the B prompts of a step from a pool of the stream (line 3)."""

    def pool_size(self, config: Config) -> int:
        """Returns the number of distinct prompts that the stream gives per step; 0: B, all of them kept."""
        ...

    def samples(self, config: Config) -> Samples | None:
        """Returns what `choose` samples, for `launch.plan`; None if it samples nothing."""
        ...

    def choose(
        self, config: Config, rows: np.ndarray, sample: Callable[[np.ndarray, Samples], Any]
    ) -> Choice:
        """Chooses the prompts.

        Args:
            config: the method's.
            rows: [pool] int64, rows of the train split.
            sample: (rows, Samples) -> (Responses, seconds waited per stage) of the latest policy.
        """
        ...


@dataclasses.dataclass(frozen=True)
class NextPrompts:
    """Takes the stream's next B prompts."""

    def pool_size(self, config: Config) -> int:
        """Returns 0: there is no pool."""
        return 0

    def samples(self, config: Config) -> None:
        """Returns None: it samples nothing."""

    def choose(self, config: Config, rows: np.ndarray, sample: Callable[..., Any]) -> Choice:
        """Keeps all rows."""
        return Choice(rows, {}, {})


class Improvement(Protocol):
    """Trains the policy between labels, on the posterior as a rule."""

    def optimizer(self, config: Config) -> optax.GradientTransformation | None:
        """Returns the policy's optimizer in place of the one of section `train`, which None keeps."""
        ...

    @property
    def reads_oracle(self) -> bool:
        """True if it reads the oracle's own rewards, which people and judges do not have."""
        ...

    def samples(self, config: Config) -> Samples | None:
        """Returns what an update samples, for `launch.plan`; None if it samples nothing."""
        ...

    def updates_per_step(self, config: Config) -> int:
        """Returns the updates between two steps after the last burst, rounded up, for `launch.plan`."""
        ...

    def updates(self, config: Config, labels: int) -> int:
        """Returns the updates since the start that so many labels allow, for `launch.plan`."""
        ...

    def trace(self, context: Any, prompts: PromptBatch, responses: Responses, rewards: Any) -> Any:
        """Traces an update on abstract arrays, for `launch.plan`; None if it is that of `train.update`."""
        ...

    def improve(
        self, run: Any, before: int, batch: PreferenceBatch, learned: dict[str, Any]
    ) -> dict[str, Any]:
        """Makes the updates that the labels of this step allow.

        Args:
            run: a `train.Run`, whose state and policy are changed.
            before: labels bought before this step.
            batch: the labelled duels of this step.
            learned: metrics of `train.update` on them.

        Returns:
            Metrics.
        """
        ...


def two_responses(config: Config) -> int:
    """Returns M = 2: the two responses meet."""
    return 2


def no_pool(config: Config) -> int:
    """Returns 1: every prompt has its duel."""
    return 1


def all_own(config: Config) -> float:
    """Returns 0: the policy writes all responses of S_t."""
    return 0.0


def all_of_reference(config: Config) -> float:
    """Returns 1: π_ref writes all responses of S_t, as in a data set collected before."""
    return 1.0


def sea_reference_share(config: Config) -> float:
    """Returns config.sea.reference_share."""
    return config.sea.reference_share


def every_step(config: Config) -> int:
    """Returns 1: the latest policy writes the responses of each step."""
    return 1


def by_variance(config: Config) -> str:
    """Returns 'variance': of a pool the duels whose outcome is least known stay."""
    return "variance"


def sea_responses(config: Config) -> int:
    """Returns M = config.sea.num_responses."""
    return config.sea.num_responses


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the methods table.

    Attributes:
        label: its name in tables and figures.
        about: what it does, in one line.
        strategy: the row of `ensemble.STRATEGIES` that chooses each duel.
        scorer: gives the responses their rewards; None: the strategy reads no reward.
        prompts: chooses the prompts.
        reference_share: config -> share of the M responses of S_t that π_ref writes, in [0, 1].
        num_responses: config -> M.
        steps_per_round: config -> steps whose responses one version of the policy writes.
        synthetic: whether sampled heads label a share 1 − γ of the duels after the burn-in.
        term: config -> the term that the method adds to F (Eq. 9).
        learns: 'policy', 'ensemble', both or neither.
        losses: the losses that the method is derived for; empty: any.
        pool_factor: config -> prompts proposed to per duel; of their duels the most informative are kept.
        pool_choice: config -> row of `design.POOL_CHOICES`: which are the most informative.
        improvement: how the policy learns between labels; None: it does not.
        posterior: the kind of posterior where config.ensemble.kind is 'auto'.
        section: the dataclass of the method's own config fields and their checks (`config/fields.py`).
    """

    label: str
    about: str = ""
    strategy: str = "passive"
    scorer: Scorer | None = None
    prompts: PromptSelector = NextPrompts()
    reference_share: Callable[[Config], float] = all_own
    num_responses: Callable[[Config], int] = two_responses
    steps_per_round: Callable[[Config], int] = every_step
    synthetic: bool = False
    term: Callable[[Config], LossTerm] | None = None
    learns: Sequence[str] = ("policy",)
    losses: Sequence[str] = ()
    pool_factor: Callable[[Config], int] = no_pool
    pool_choice: Callable[[Config], str] = by_variance
    improvement: Improvement | None = None
    posterior: str = "mlp"
    section: type[Section] | None = None

    @property
    def learns_ensemble(self) -> bool:
        """True if the method learns a posterior over rewards (line 9)."""
        return "ensemble" in self.learns

    @property
    def keeps_policy(self) -> bool:
        """True if the policy stays what it was at the start, and only the posterior learns."""
        return "policy" not in self.learns and self.improvement is None

    @property
    def reads_oracle(self) -> bool:
        """True if a part reads the oracle's own rewards, which people and judges do not have."""
        return any(part is not None and part.reads_oracle for part in (self.scorer, self.improvement))

    @property
    def chooses(self) -> bool:
        """True if the duel depends on the responses' rewards."""
        return self.scorer is not None


def posterior_kind(config: Config, method: Method) -> str:
    """Returns the kind of a method's posterior: its own, unless config.ensemble.kind names another."""
    kind = config.ensemble.kind
    return method.posterior if kind == "auto" else kind


def no_rewards(num_prompts: int, num_responses: int) -> Array:
    """Returns rewards [1, B, M] f32 of 0, for strategies that read none."""
    return jnp.zeros((1, num_prompts, num_responses))


def num_members(config: Config, method: Method) -> int:
    """Returns K, the members of the posterior that the method learns."""
    ensemble = config.ensemble
    return ensemble.num_draws if posterior_kind(config, method) == "linear" else ensemble.num_members
