"""Fields of the policy before it is aligned, and of the commands that train a policy or a reward model."""

import dataclasses

from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.models.remat import POLICIES

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Policy(Section):
    """The starting policy, which is also the reference policy."""

    section_name = "policy"
    folder: str = field(
        "", "folder or hub name in Hugging Face's layout; empty: trained here, of the following shape"
    )
    num_layers: int = field(2, "layers", at_least=1)
    width: int = field(128, "width of the hidden states", at_least=1)
    num_heads: int = field(4, "attention heads, a divisor of width", at_least=1)
    mlp_width: int = field(512, "width of an MLP's hidden layer", at_least=1)
    dtype: str = field("float32", "dtype of activations; parameters and log-probs are float32", one_of=DTYPES)
    remat: str = field("none", "what the backward pass recomputes", one_of=tuple(POLICIES))
    trained_layers: int = field(
        0, "last layers that learn, with the final norm; 0: all parameters learn", at_least=0
    )

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires heads of one width."""
        if checks.sound("policy.width", "policy.num_heads"):
            heads, width = checks.config.policy.num_heads, checks.config.policy.width
            checks.require(width % heads == 0, "policy.width", f"a multiple of policy.num_heads={heads}")
        if checks.sound("policy.folder", "policy.num_layers") and not checks.config.policy.folder:
            check_trained_layers(checks, checks.config.policy.num_layers)


def check_trained_layers(checks: Checks, num_layers: int) -> None:
    """Requires that the policy has the layers that learn."""
    if checks.sound("policy.trained_layers"):
        valid = f"0 (all parameters) to {num_layers}, the policy's layers"
        fits = checks.config.policy.trained_layers <= num_layers
        checks.require(fits, "policy.trained_layers", valid)


@dataclasses.dataclass(frozen=True)
class Sft(Section):
    """Supervised fine-tuning on demonstrations: of the policy that is trained here, and by `sft`."""

    section_name = "sft"
    seed: int = field(0, "seed of the initial weights and of the order of examples", at_least=0)
    steps: int = field(1000, "optimizer steps", at_least=1)
    batch_size: int = field(32, "demonstrations per step", at_least=1)
    learning_rate: float = field(3e-3, "peak learning rate of Adam", above=0)
    prompt_weight: float = field(
        0.1, "weight of the prompt tokens' loss, for models trained from random weights", at_least=0
    )
    token_chunk: int = field(0, "response tokens whose logits are in memory at once; 0: all", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires whole sequences where the prompt has a loss."""
        if checks.sound("sft.prompt_weight", "sft.token_chunk"):
            weight, chunk = checks.config.sft.prompt_weight, checks.config.sft.token_chunk
            valid = f"0, or more with sft.prompt_weight=0, not {weight:g}"
            checks.require(chunk == 0 or weight == 0, "sft.token_chunk", valid)


@dataclasses.dataclass(frozen=True)
class RewardTraining(Section):
    """The command `rm`: training of a reward model on preferences (Eq. 5)."""

    section_name = "rm"
    seed: int = field(0, "seed of the new head, of the sampled pairs and of their order", at_least=0)
    num_pairs: int = field(
        8000, "pairs that the starting policy samples on the embedded task; a preference set has its own",
        at_least=1,
    )  # fmt: skip
    steps: int = field(500, "optimizer steps", at_least=1)
    batch_size: int = field(32, "pairs per step", at_least=1)
    learning_rate: float = field(1e-3, "peak learning rate of Adam", above=0)
    length: int = field(
        0, "tokens of a text; pairs with a longer one are dropped; 0: the model's context", at_least=0
    )
    micro_batch: int = field(0, "pairs per backward pass; 0: the whole batch", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires equal parts of a batch; only the command asks for it."""
        if not checks.sound("rm.batch_size", "rm.micro_batch", "mesh"):
            return
        B, micro = checks.config.rm.batch_size, checks.config.rm.micro_batch
        checks.require(B % (micro or B) == 0, "rm.micro_batch", f"0, or a divisor of rm.batch_size={B}")
        shards = checks.config.mesh.data * checks.config.mesh.fsdp
        valid = f"such that data · fsdp divides rm.batch_size={B}, rm.micro_batch={micro}"
        checks.require(B % shards == micro % shards == 0, "mesh", valid)
