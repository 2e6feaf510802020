"""TL;DR summarisation (App. F.1): Pythia 1B, 2.8B or 6.9B, DPO, IPO or SLiC, any method (apl and xpo: DPO).

`python -m sea_jax.main --config=configs/tldr.py:size=1b,dap=dpo,method=sea --workdir=runs/tldr-1b`

The paper's hardware: 8 A100 for the learner and the actors, 16 more that serve the reward model. Here one
mesh of eight devices does all of it; `python -m launch.plan` says what each must hold, for these and for
others (docs/plans.md). Three runs each; the paper's Fig. 1 has win rates against the references.
Not run at this size: no figure of ours stands in this file.

Without a network, give folders: `--config.policy.folder`, `--config.encoder.folder` and
`--config.oracle.folder` in Hugging Face's layout, `--config.task.path` of jsonl or parquet files with the
dataset's columns.
"""

from sea_jax.config.fields import to_config
from sea_jax.config.options import parse_options
from sea_jax.config.task import TextTask
from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config

# SFT models of Huang et al. (2024), arXiv:2403.17031, where they are stored whole as safetensors. The cleanrl
# repositories and trl-lib's 2.8b and 6.9b have PyTorch pickles (trl-lib's also a part in safetensors).
SFT = {
    "1b": "trl-lib/pythia-1b-deduped-tldr-sft",  # in bfloat16
    "2.8b": "mnoukhov/EleutherAI_pythia-2.8b-deduped__sft__tldr_55513",  # of seed 55513, another upload
    "6.9b": "cleanrl/EleutherAI_pythia-6.9b-deduped__sft__tldr@refs/pr/1",  # the hub's own conversion
}
BETA = dict(dpo=0.1, slic=0.2, ipo=0.2)  # the paper tunes IPO's among 0.2, 0.3, 0.5, 1.0


def get_config(options: str = "") -> Config:
    """Returns the paper's hyperparameters.

    Args:
        options: size, dap and method as 'name=value', divided by commas; 1b, dpo and sea where left out.

    Raises:
        ValueError: on an unknown option.
    """
    chosen = dict(size="1b", dap="dpo", method="sea")
    chosen |= parse_options(options, size=tuple(SFT), dap=tuple(BETA), method=None)
    config = base_config()
    config.methods = (chosen["method"],)
    config.num_seeds = 3
    config.mesh.fsdp = 8
    config.task = to_config(
        TextTask(
            name="tldr",
            dataset="trl-lib/tldr",
            chat="no",
            num_train=50_000,
            num_tuning=1000,
            num_heldout=1000,
            prompt_length=512,
            response_length=53,
        )
    )
    _set_models(config, chosen["size"])
    _set_reward_training(config)

    config.train.dap = chosen["dap"]
    config.train.beta = BETA[chosen["dap"]]
    config.train.batch_size = 128
    config.train.query_budget = 50_000
    config.train.learning_rate = 5e-7
    config.train.schedule = "cosine"
    config.train.warmup_queries = 0
    config.train.micro_batch = 128
    config.train.token_chunk = 16
    config.sampler.micro_batch = 32
    config.ensemble.prior = "random"
    config.ensemble.capacity = 65_536
    config.sea.burn_in = 1000
    # A guess, since the prior is random and a batch has 128 labels.
    config.watch.update(after=1000, labels=512, accuracy_labels=512)
    # Guesses, as the paper has no updates between labels; nobody has run them at this size.
    config.rloo.update(num_prompts=64, num_responses=4, pool_factor=2, learning_rate=1e-6, kl_weight=0.05)
    config.rloo.update(burst_labels=(512, 1024), burst_updates=(100, 200), updates_per_label=0.1)

    config.eval.num_prompts = 1000
    config.eval.num_pairs = 1000
    config.eval.batch_size = 128
    config.eval.every_queries = 2560
    config.eval.reward_levels = ()
    return config


def _set_models(config: Config, size: str) -> None:
    """Sets the policy, the oracle and the backbone."""
    config.policy.folder = SFT[size]
    config.policy.dtype = "bfloat16"
    config.policy.remat = "full"
    config.oracle.kind = "reward_model"
    config.oracle.folder = "Skywork/Skywork-Reward-Llama-3.1-8B"
    config.oracle.dtype = "bfloat16"
    config.backbone.kind = "encoder"
    config.encoder.folder = "llm-blender/PairRM-hf"
    config.encoder.dtype = "bfloat16"


def _set_reward_training(config: Config) -> None:
    """Sets the command `rm`.

    With task.dataset="trl-lib/tldr-preference" and task.num_train=0 it is an epoch of 92,858 pairs.
    """
    config.rm.steps = 1451
    config.rm.batch_size = 64
    config.rm.learning_rate = 3e-6
    config.rm.micro_batch = 8
    config.rm.length = 1024
