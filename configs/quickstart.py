"""The miniature, end to end on two CPU cores: task, SFT, backbone, then every method on every seed.

`make run` is `python -m sea_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> Any:
    """Every field of a run; override any with --config.<field>=<value>."""
    config = ConfigDict()
    config.methods = ("passive", "sea")  # rows of sea_jax.methods.METHODS
    config.seed = 0  # replicate i uses seed + i and oracle_seed + i
    config.num_seeds = 2
    config.cache_dir = ""  # of trained parts; empty: <workdir>/cache
    config.progress = True

    # Devices: data · fsdp of them share a batch, fsdp · tensor the parameters (sea_jax/runtime/mesh.py).
    config.mesh = ConfigDict(dict(data=1, fsdp=1, tensor=1))
    _add_task(config)
    _add_models(config)
    _add_learning(config)
    _add_places(config)
    _add_methods(config)
    config.eval = ConfigDict(
        dict(
            split="heldout", num_prompts=500, batch_size=250, every_queries=128, num_pairs=500,
            num_samples=4, best_of=1, levels=(0.8, 0.9, 0.95), reference_levels=(0.8, 0.9, 0.95),
            reward_levels=(5.5, 6.0, 6.5, 7.0),
        )
    )  # fmt: skip
    # What single methods have otherwise, e.g. overrides.passive.train.batch_size: train, ensemble, sea.
    config.overrides = ConfigDict()
    return config


def _add_task(config: ConfigDict) -> None:
    """Prompts, and who judges."""
    config.task = ConfigDict(dict(name="mini_tldr", oracle_seed=0))
    config.oracle = ConfigDict(
        # kind: "task" is the task's hidden reward; "reward_model" that of a folder in Hugging Face's layout;
        # "remote" a service (sea_jax/serve/oracle_service.py) at url; "judge" a language model, so named,
        # at base_url in OpenAI's API, with its prices in US dollars for a million tokens, 0 where unknown.
        # chat: whether it reads texts as its tokenizer's template writes them ("auto": if there is one).
        dict(
            kind="task", folder="", dtype="float32", chat="auto", batch_size=64, labels="threshold",
            flip_probability=0.0,
            url="http://127.0.0.1:8000", base_url="", model="", price_in=0.0, price_out=0.0,
            # Seconds for an attempt, and for a request with all its attempts; answers that are none before it
            # is given up; requests at once, comparisons in a request to a service, calls a minute (0: any).
            timeout_s=30.0, patience_s=300.0, attempts=3, in_flight=8, request_size=16,
            requests_per_minute=0.0,
        )
    )  # fmt: skip


def _add_models(config: ConfigDict) -> None:
    """The policy before it is aligned, and what the ensemble reads; what trains them."""
    # folder: a starting policy in Hugging Face's layout; empty: trained here, of the shape that follows.
    # dtype: of activations; parameters and log-probs are float32. remat: what the backward pass recomputes.
    config.policy = ConfigDict(
        dict(folder="", num_layers=2, width=128, num_heads=4, mlp_width=512, dtype="float32", remat="none")
    )
    config.sft = ConfigDict(
        dict(seed=0, steps=1000, batch_size=32, learning_rate=3e-3, prompt_weight=0.1, token_chunk=0)
    )
    # methods=("rm",): a reward model. num_pairs: of the starting policy's samples, on the embedded task.
    # length: tokens of a text, longer ones are dropped; 0: the model's context.
    config.rm = ConfigDict(
        dict(seed=0, num_pairs=8000, steps=500, batch_size=32, learning_rate=1e-3, length=0, micro_batch=0)
    )
    # kind: "ranker" is trained here, of the shape that follows; "encoder" is pretrained, in config.encoder.
    config.backbone = ConfigDict(
        dict(
            kind="ranker", seed=0, num_prompts=6000, num_responses=4, num_rewards=256, temperature=1.0,
            steps=350, batch_size=64, learning_rate=1e-2, decoder_rate=0.03,
            pooled_width=192, width=128, mean_scale=0.3, gate_hidden=128,
        )
    )  # fmt: skip
    # A DeBERTa preference encoder in Hugging Face's layout; leave_out: beginnings of its head's tensor names.
    config.encoder = ConfigDict(
        dict(
            folder="", dtype="float32", leave_out=("head_layer.",),
            markers=("<|source|>", "<|candidate1|>"), source_length=1224, candidate_length=412, batch_size=64,
        )
    )  # fmt: skip
    # Heads that learn one reward of the family each, for ensemble.prior="pretrained" to draw from.
    config.family = ConfigDict(dict(num_heads=40, steps=300, batch_size=64))


def _add_learning(config: ConfigDict) -> None:
    """The loop of every method."""
    config.train = ConfigDict(
        dict(
            batch_size=4, query_budget=1024, temperature=0.7,
            dap="dpo", beta=0.1, learning_rate=2.5e-4, warmup_queries=40, schedule="constant",
            max_grad_norm=1.0,
            max_idle_steps=500,  # steps in a row without a label to buy, after which a run ends early
            staleness=0,  # steps that the policy may learn between writing responses and learning from them
            micro_batch=0,  # prompts in a backward pass; 0: the whole batch
            token_chunk=0,  # tokens of a response whose logits are in memory at once; 0: all
            per_token=False,  # IPO: divide log-ratios by lengths
            margin_ratio=0.3,  # SimPO: target margin over β
        )
    )  # fmt: skip


def _add_places(config: ConfigDict) -> None:
    """Who samples and who is the oracle, in this process or others."""
    # kind: "jax" samples in this process, micro_batch prompts at once (0: the whole batch), on the devices of
    # config.mesh or on so many `devices` next to them; "vllm" in one beside it that `python` runs (make
    # sidecar): max_num_seqs responses at once, kv_cache_gb GiB for their keys and values, timeouts in
    # seconds, replaced up to `restarts` times in a row when it is lost.
    config.sampler = ConfigDict(
        dict(
            kind="jax", micro_batch=0, devices=0, python=".venv-vllm/bin/python", max_num_seqs=256,
            kv_cache_gb=1.0, start_timeout=300.0, timeout=600.0, restarts=2,
        )
    )  # fmt: skip
    # Processes of their own, on any machine of a Ray cluster (launch/ray_run.py): that sample, each a part of
    # the batch, and that are the oracle; what each takes of its machine; seconds for an answer, and how often
    # one may be lost over the same question. 0 actors, 0 oracles: this process does it.
    config.ray = ConfigDict(
        dict(
            actors=0, oracles=0, actor_cpus=1.0, actor_gpus=0.0, oracle_cpus=1.0, oracle_gpus=0.0,
            timeout_s=600.0, retries=3,
        )
    )  # fmt: skip


def _add_methods(config: ConfigDict) -> None:
    """What only some methods read."""
    config.ensemble = ConfigDict(
        dict(
            num_members=20, hidden=(128, 128), prior="pretrained", prior_scale=1.0,
            learning_rate=1e-3, steps=5, batch_size=128,
            regularization=0.5, scale_by_data=True, capacity=8192,
        )
    )  # fmt: skip
    config.sea = ConfigDict(
        dict(
            num_responses=20, passive_queries=0, gamma=0.7, burn_in=64, gamma_mode="count",
            synthetic_pairs="max_margin",
        )
    )  # fmt: skip
    # APL: of pool_factor · batch_size prompts those of highest entropy, by entropy_samples responses each;
    # num_responses to each of these, of which the two with the largest margin in implicit reward meet.
    config.apl = ConfigDict(dict(pool_factor=8, entropy_samples=8, num_responses=8))
    # XPO (Eq. 19): α of its loss's term in what π_ref writes.
    config.xpo = ConfigDict(dict(alpha=5e-6))
