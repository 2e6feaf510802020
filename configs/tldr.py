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

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

# SFT models of Huang et al. (2024), arXiv:2403.17031, where they are stored whole as safetensors. The cleanrl
# repositories and trl-lib's 2.8b and 6.9b have PyTorch pickles (trl-lib's also a part in safetensors).
SFT = {
    "1b": "trl-lib/pythia-1b-deduped-tldr-sft",  # in bfloat16
    "2.8b": "mnoukhov/EleutherAI_pythia-2.8b-deduped__sft__tldr_55513",  # of seed 55513, another upload
    "6.9b": "cleanrl/EleutherAI_pythia-6.9b-deduped__sft__tldr@refs/pr/1",  # the hub's own conversion
}
BETA = dict(dpo=0.1, slic=0.2, ipo=0.2)  # the paper tunes IPO's among 0.2, 0.3, 0.5, 1.0


def get_config(options: str = "") -> Any:
    """The paper's hyperparameters.

    Args:
        options: size, dap and method as 'name=value', divided by commas; 1b, dpo and sea where left out.

    Raises:
        ValueError: on an unknown option.
    """
    chosen = parse(options, size=tuple(SFT), dap=tuple(BETA), method=None)
    config = quickstart.get_config()
    config.methods = (chosen.get("method", "sea"),)
    config.num_seeds, config.mesh.fsdp = 3, 8
    config.task = ConfigDict(
        dict(
            name="tldr", oracle_seed=0, dataset="trl-lib/tldr", subset="", path="", split_seed=0,
            prompt_column="", reference_column="", chosen_column="", rejected_column="", chat="no",
            eos_token="", num_train=50_000, num_tuning=1000, num_heldout=1000, prompt_length=512,
            response_length=53,
        )
    )  # fmt: skip
    # methods=("rm",) with task.dataset="trl-lib/tldr-preference", task.num_train=0: an epoch of 92,858 pairs.
    config.rm.update(dict(steps=1451, batch_size=64, learning_rate=3e-6, micro_batch=8, length=1024))
    config.policy.folder = SFT[chosen.get("size", "1b")]
    config.policy.dtype, config.policy.remat = "bfloat16", "full"
    config.oracle.update(
        dict(
            kind="reward_model", folder="Skywork/Skywork-Reward-Llama-3.1-8B", dtype="bfloat16", batch_size=64
        )
    )  # fmt: skip
    config.backbone.kind = "encoder"
    config.encoder.folder, config.encoder.dtype = "llm-blender/PairRM-hf", "bfloat16"
    dap = chosen.get("dap", "dpo")
    config.train.update(
        dict(
            dap=dap, beta=BETA[dap], batch_size=128, query_budget=50_000, learning_rate=5e-7,
            schedule="cosine", warmup_queries=0, temperature=0.7, micro_batch=128, token_chunk=16,
        )
    )  # fmt: skip
    config.ensemble.update(dict(prior="random", capacity=65_536))
    config.sea.update(dict(num_responses=20, gamma=0.7, burn_in=1000))
    config.apl.update(dict(pool_factor=8, num_responses=8))  # 1024 prompts for a batch of 128
    config.xpo.alpha = 5e-6
    config.sampler.micro_batch = 32
    config.eval.update(
        dict(num_prompts=1000, batch_size=128, num_pairs=1000, every_queries=2560, reward_levels=())
    )
    return config


def parse(options: str, **valid: tuple[str, ...] | None) -> dict[str, str]:
    """'a=1,b=2' -> {'a': '1', 'b': '2'}.

    Args:
        options: what stands behind the config file's colon.
        **valid: the names, each with its values, or None where another place checks them.

    Raises:
        ValueError: naming the option, its value and what is valid.
    """
    chosen = {}
    for part in filter(None, options.split(",")):
        name, _, value = part.partition("=")
        if name not in valid:
            raise ValueError(f"config option {part!r}: valid names are {', '.join(valid)}")
        allowed = valid[name]
        if allowed is not None and value not in allowed:
            raise ValueError(f"config option {part!r}: valid values are {', '.join(allowed)}")
        chosen[name] = value
    return chosen
