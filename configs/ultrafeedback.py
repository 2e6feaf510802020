"""General tasks (App. F.2): Llama-3-8B-Instruct on UltraFeedback's prompts, SimPO, ArmoRM as the oracle.

`python -m sea_jax.main --config=configs/ultrafeedback.py:model=llama3-8b --workdir=runs/ultrafeedback`

Hardware, folders without a network, and what has not been run: as in configs/tldr.py. The paper judges the
trained policies by AlpacaEval 2.0 (Table 3), which this project does not hold; here the oracle judges
held-out prompts against the starting policy.
"""

from sea_jax.config.fields import to_config
from sea_jax.config.options import parse_options
from sea_jax.config.task import TextTask
from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config

MODELS = {
    "llama3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
}


def get_config(options: str = "") -> Config:
    """Returns the paper's hyperparameters; SEA's own are those of TL;DR.

    Args:
        options: model and method as 'name=value', divided by commas; llama3-8b and sea where left out.

    Raises:
        ValueError: on an unknown option.
    """
    chosen = dict(model="llama3-8b", method="sea")
    chosen |= parse_options(options, model=tuple(MODELS), method=None)
    config = base_config()
    config.methods = (chosen["method"],)
    config.num_seeds = 3
    # Two devices share a layer, or its weights leave too little room for the caches of long responses.
    config.mesh.fsdp = 4
    config.mesh.tensor = 2
    config.task = to_config(
        TextTask(
            name="ultrafeedback",
            dataset="HuggingFaceH4/ultrafeedback_binarized",
            chat="yes",
            num_train=0,
            num_tuning=500,
            num_heldout=1000,
            prompt_length=1800,
            response_length=1024,
        )
    )
    _set_models(config, chosen["model"])
    _set_reward_training(config)

    # App. F.2: γ/β = 0.3, and 0.9 is the temperature of AlpacaEval's answers only.
    config.train.dap = "simpo"
    config.train.beta = 10.0
    config.train.margin_ratio = 0.3
    config.train.batch_size = 128
    config.train.query_budget = 60_000
    config.train.learning_rate = 8e-7
    config.train.schedule = "cosine"
    config.train.warmup_queries = 0
    config.train.micro_batch = 8
    config.train.token_chunk = 16
    config.sampler.micro_batch = 8
    config.ensemble.prior = "random"
    config.ensemble.capacity = 65_536
    config.sea.burn_in = 1000
    # A guess, since the prior is random and a batch has 128 labels.
    config.watch.update(after=1000, labels=512, accuracy_labels=512)
    # Guesses, as the paper has no updates between labels; nobody has run them at this size.
    config.rloo.update(num_prompts=64, num_responses=4, pool_factor=2, learning_rate=1e-6, kl_weight=0.05)
    config.rloo.update(burst_labels=(512, 1024), burst_updates=(100, 200), updates_per_label=0.1)

    config.eval.num_prompts = 500
    config.eval.num_pairs = 500
    config.eval.batch_size = 128
    config.eval.every_queries = 2560
    config.eval.reward_levels = ()
    return config


def _set_models(config: Config, model: str) -> None:
    """Sets the policy, the oracle and the backbone."""
    config.policy.folder = MODELS[model]
    config.policy.dtype = "bfloat16"
    config.policy.remat = "full"
    config.oracle.kind = "reward_model"
    config.oracle.folder = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    config.oracle.dtype = "bfloat16"
    config.oracle.batch_size = 16
    config.backbone.kind = "encoder"
    config.encoder.folder = "llm-blender/PairRM-hf"
    config.encoder.dtype = "bfloat16"


def _set_reward_training(config: Config) -> None:
    """Sets the command `rm`: an epoch of 61k pairs; a guess."""
    config.rm.steps = 950
    config.rm.batch_size = 64
    config.rm.learning_rate = 3e-6
    config.rm.micro_batch = 8
    config.rm.length = 2048
