"""Fields of the posterior over rewards: the features that it reads, its prior, and what it decides (SEA)."""

import dataclasses

from sea_jax import tasks
from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.config.policy import DTYPES


@dataclasses.dataclass(frozen=True)
class Backbone(Section):
    """The frozen backbone whose features the ensemble reads, and how it is prepared."""

    section_name = "backbone"
    kind: str = field(
        "ranker",
        "'ranker': trained here, of the following shape; 'policy': hidden states of the starting policy; "
        "'encoder': pretrained, of section encoder",
        one_of=("ranker", "policy", "encoder"),
    )
    seed: int = field(0, "seed of the samples, the initial weights and the order of examples", at_least=0)
    num_prompts: int = field(6000, "train prompts to whose responses the backbone is fitted", at_least=1)
    num_responses: int = field(4, "samples of the starting policy per prompt", at_least=1)
    num_rewards: int = field(256, "rewards drawn for ranker and priors, S; never an oracle's", at_least=1)
    family: str = field(
        "", "task of the same posts from whose family these rewards are drawn; empty: the experiment's own"
    )
    temperature: float = field(1.0, "sampling temperature of the responses", at_least=0)
    steps: int = field(350, "optimizer steps", at_least=1)
    batch_size: int = field(64, "prompts per step", at_least=1)
    learning_rate: float = field(1e-2, "peak learning rate of Adam", above=0)
    decoder_rate: float = field(0.03, "learning rate of the decoder over learning_rate", at_least=0)
    pooled_width: int = field(192, "width of the pooled states before the projection", at_least=1)
    width: int = field(128, "features, E; hidden states may have fewer coordinates", at_least=1)
    mean_scale: float = field(0.3, "scale of the coordinate along the mean reward", at_least=0)
    gate_hidden: int = field(128, "width of the hidden layer of the pooling gate", at_least=1)
    layer: int = field(
        -1, "policy: blocks below the states; 0: embeddings, all: after the final norm, -1: half", at_least=-1
    )
    pool: str = field(
        "both", "policy: the state of the last token, the mean over the response's tokens, or both",
        one_of=("last", "mean", "both"),
    )  # fmt: skip
    read_eos: bool = field(False, "policy: whether the state that has read an EOS counts")
    scaling: str = field(
        "pca", "policy: 'standard': unit variance of each coordinate; 'pca': then width principal components",
        one_of=("standard", "pca"),
    )  # fmt: skip

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a task with a family of rewards for a ranker, and a folder for an encoder."""
        if not checks.sound("backbone.kind", "task.name"):
            return
        if tasks.find(checks.config.task.name).reward_family is None:
            checks.one_of("backbone.kind", ("policy", "encoder"))
        checks.one_of("backbone.family", ("", *tasks.same_posts(checks.config.task.name)))
        kind = checks.config.backbone.kind
        if kind == "policy":
            _check_states(checks)
        if kind == "encoder" and checks.sound("encoder.folder"):
            valid = f"a folder or a hub name with backbone.kind={kind!r}"
            checks.require(checks.config.encoder.folder != "", "encoder.folder", valid)


def _check_states(checks: Checks) -> None:
    """Requires responses to compare, and a layer of the policy if it is trained here."""
    if checks.sound("backbone.num_responses"):
        enough = checks.config.backbone.num_responses >= 2
        checks.require(enough, "backbone.num_responses", "at least 2 with backbone.kind='policy'")
    if checks.sound("policy.folder", "policy.num_layers") and not checks.config.policy.folder:
        check_layer(checks, checks.config.policy.num_layers)


def check_layer(checks: Checks, num_layers: int) -> None:
    """Requires that hidden states are those of a layer of the policy."""
    if checks.sound("backbone.kind", "backbone.layer") and checks.config.backbone.kind == "policy":
        valid = f"-1 (half) to {num_layers}, the policy's layers"
        checks.require(checks.config.backbone.layer <= num_layers, "backbone.layer", valid)


@dataclasses.dataclass(frozen=True)
class Encoder(Section):
    """A DeBERTa preference encoder in Hugging Face's layout, as PairRM, without its head."""

    section_name = "encoder"
    folder: str = field("", "folder or hub name in Hugging Face's layout")
    dtype: str = field("float32", "dtype of activations", one_of=DTYPES)
    leave_out: tuple[str, ...] = field(("head_layer.",), "prefixes of the tensors of its head")
    markers: tuple[str, ...] = field(
        ("<|source|>", "<|candidate1|>"),
        "tokens before prompt and response, whose states are the features",
    )
    source_length: int = field(1224, "tokens of a prompt, with marker and special tokens", at_least=4)
    candidate_length: int = field(412, "tokens of a response, with marker and special tokens", at_least=4)
    batch_size: int = field(64, "sequences encoded at once", at_least=1)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a marker of the prompt and one of the response."""
        if checks.sound("encoder.markers"):
            checks.require(len(checks.config.encoder.markers) == 2, "encoder.markers", "two tokens")


@dataclasses.dataclass(frozen=True)
class PriorHeads(Section):
    """Heads that each learn one reward, for ensemble.prior='pretrained' to draw from."""

    section_name = "prior_heads"
    num_heads: int = field(40, "heads to draw from, P; at most backbone.num_rewards", at_least=1)
    steps: int = field(300, "optimizer steps", at_least=1)
    batch_size: int = field(64, "prompts per step", at_least=1)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a reward for every head."""
        if checks.sound("prior_heads.num_heads", "backbone.num_rewards"):
            heads, rewards = checks.config.prior_heads.num_heads, checks.config.backbone.num_rewards
            valid = f"1 to backbone.num_rewards={rewards}"
            checks.require(heads <= rewards, "prior_heads.num_heads", valid)


@dataclasses.dataclass(frozen=True)
class Ensemble(Section):
    """The posterior over rewards, on frozen features."""

    section_name = "ensemble"
    kind: str = field(
        "auto", "'mlp': MLP heads (Eq. 8); 'linear': draws from Bayesian logistic regression; 'auto': the "
        "method's own",
        one_of=("auto", "mlp", "linear"),
    )  # fmt: skip
    num_members: int = field(20, "mlp: members, K", at_least=1)
    num_draws: int = field(
        256, "linear: draws from the posterior, its members, K; few of them blur what a pool tells",
        at_least=1,
    )  # fmt: skip
    prior: str = field(
        "pretrained", "mlp: heads drawn from prior_heads, linear: mean and covariance of the pretraining "
        "rewards; 'random': random weights, of mean 0",
        one_of=("pretrained", "random"),
    )  # fmt: skip
    prior_scale: float = field(
        1.0,
        "multiple of the rewards of fresh members, the prior's width; linear: of the deviations from the "
        "prior's mean",
        at_least=0,
    )
    hidden: tuple[int, ...] = field((128, 128), "mlp: widths of a head's hidden layers", at_least=1)
    learning_rate: float = field(1e-3, "mlp: learning rate of Adam", above=0)
    steps: int = field(5, "mlp: optimizer steps per step of a method, m", at_least=1)
    batch_size: int = field(128, "mlp: pairs per optimizer step, drawn from D_t for each head", at_least=1)
    regularization: float = field(0.5, "mlp: strength of the pull towards the initial heads, λ", at_least=0)
    scale_by_data: bool = field(True, "mlp: divide λ by |D_t|, as for a prior")
    sharpness: float = field(1.0, "linear: factor of a reward's logits in the likelihood", above=0)
    newton_steps: int = field(8, "linear: steps of Newton's method per step of a method", at_least=1)
    capacity: int = field(8192, "pairs in D_t, C; the oldest are overwritten", at_least=1)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a linear posterior's prior to have a width."""
        if checks.sound("ensemble.kind", "ensemble.prior_scale") and checks.config.ensemble.kind == "linear":
            valid = "above 0 with ensemble.kind='linear'"
            checks.require(checks.config.ensemble.prior_scale > 0, "ensemble.prior_scale", valid)


@dataclasses.dataclass(frozen=True)
class Sea(Section):
    """Decisions of the methods with an ensemble (Alg. 2)."""

    section_name = "sea"
    num_responses: int = field(20, "responses per prompt, M", at_least=1)
    reference_share: float = field(
        0.0, "share of a proposal set that π_ref writes, against collapse", at_least=0, at_most=1
    )
    passive_queries: int = field(0, "oracle queries before the ensemble selects duels", at_least=0)
    gamma: float = field(0.7, "share of the duels that the oracle labels, γ", above=0, at_most=1)
    burn_in: int = field(64, "oracle queries during which γ is 1", at_least=0)
    gamma_mode: str = field(
        "count", "'count': γB duels of a batch, rounded over all steps; 'bernoulli': a draw per duel",
        one_of=("count", "bernoulli"),
    )  # fmt: skip
    synthetic_pairs: str = field(
        "max_margin", "pair that a sampled head labels: the Thompson duel, or the head's best and worst",
        one_of=("thompson", "max_margin"),
    )  # fmt: skip

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a γ that buys a label before the run counts as idle."""
        if checks.sound("sea.gamma", "train.batch_size", "train.max_idle_steps"):
            train = checks.config.train
            least = 1 / (train.batch_size * train.max_idle_steps)
            valid = (
                f"above {least:g}, so that {train.max_idle_steps} steps (train.max_idle_steps) buy a label"
            )
            checks.require(checks.config.sea.gamma > least, "sea.gamma", valid)
