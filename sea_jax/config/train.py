"""Fields of the policy's learning, and of the processes that sample for it."""

import dataclasses

from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.config.oracle import REMOTE_KINDS
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.losses import DAP_LOSSES


@dataclasses.dataclass(frozen=True)
class Train(Section):
    """The loop of every method: batches, budget and the policy's loss."""

    section_name = "train"
    batch_size: int = field(4, "prompts per step, B", at_least=1)
    query_budget: int = field(1024, "oracle queries of a run", at_least=1)
    temperature: float = field(0.7, "sampling temperature of the responses", above=0)
    dap: str = field("dpo", "preference loss, of sea_jax.losses.DAP_LOSSES", one_of=tuple(sorted(DAP_LOSSES)))
    beta: float = field(0.1, "strength of the KL term, or the loss's own factor, β", above=0)
    learning_rate: float = field(2.5e-4, "peak learning rate of Adam", above=0)
    warmup_queries: int = field(40, "oracle queries of linear warm-up", at_least=0)
    schedule: str = field(
        "constant", "learning rate after warm-up, by oracle queries", one_of=("constant", "cosine")
    )
    max_grad_norm: float = field(1.0, "global norm that gradients are clipped to", above=0, infinite=True)
    max_idle_steps: int = field(
        500, "steps in a row without a label to buy, after which a run ends early", at_least=1
    )
    staleness: int = field(
        0, "steps that the policy may learn between writing responses and learning from them", at_least=0
    )
    ask_ahead: int = field(
        0,
        "steps whose duels are asked before the first of them is learned from, so that people are not waited "
        "for and do not wait; adds to staleness",
        at_least=0,
    )
    micro_batch: int = field(0, "prompts per backward pass; 0: the whole batch", at_least=0)
    token_chunk: int = field(0, "response tokens whose logits are in memory at once; 0: all", at_least=0)
    per_token: bool = field(False, "IPO: divide log-ratios by the lengths of responses")
    margin_ratio: float = field(0.3, "SimPO: target margin, as a multiple of β", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires equal parts of a batch, and options of the chosen loss."""
        if checks.sound("train.per_token", "train.dap"):
            train = checks.config.train
            valid = f"False unless train.dap is 'ipo', not {train.dap!r}"
            checks.require(not train.per_token or train.dap == "ipo", "train.per_token", valid)
        _check_parts(checks)


def _check_parts(checks: Checks) -> None:
    """Requires that passes and devices share a batch equally."""
    parts = ("train.batch_size", "train.micro_batch", "sampler.micro_batch")
    for name in parts[1:]:
        if checks.sound("train.batch_size", name):
            B, size = checks.config.train.batch_size, checks.get(name)
            checks.require(B % (size or B) == 0, name, f"0, or a divisor of train.batch_size={B}")
    if checks.sound("mesh", *parts):
        shards = checks.config.mesh.data * checks.config.mesh.fsdp
        sizes = {name: checks.get(name) for name in parts}
        valid = f"such that data · fsdp divides {', '.join(f'{k}={v}' for k, v in sizes.items())}"
        checks.require(not any(size % shards for size in sizes.values()), "mesh", valid)


@dataclasses.dataclass(frozen=True)
class Sampler(Section):
    """The sampler of responses: in this process, or vLLM in one beside it (`make sidecar`)."""

    section_name = "sampler"
    kind: str = field("jax", "'jax': in this process; 'vllm': in a process beside it, run by python")
    micro_batch: int = field(0, "jax: prompts sampled at once; 0: the whole batch", at_least=0)
    devices: int = field(
        0, "jax: devices that only sample, beside those of the mesh; 0: those of the mesh", at_least=0
    )
    python: str = field(".venv-vllm/bin/python", "vllm: Python of an environment with vLLM")
    max_num_seqs: int = field(256, "vllm: responses sampled at once", at_least=1)
    kv_cache_gb: float = field(1.0, "vllm: GiB for keys and values", above=0)
    start_timeout: float = field(300.0, "vllm: seconds for the process to start", above=0)
    timeout: float = field(600.0, "vllm: seconds for a batch of responses", above=0)
    restarts: int = field(2, "vllm: replacements in a row of a lost process", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires that devices of its own are few enough and not those of actors."""
        if not checks.sound("sampler", "ray.actors", "train.batch_size"):
            return
        sampler, actors, B = checks.config.sampler, checks.config.ray.actors, checks.config.train.batch_size
        valid = f"0 with ray.actors={actors}, which have devices"
        checks.require(not (sampler.devices and actors), "sampler.devices", valid)
        if sampler.kind == "jax":
            valid = f"0, or a divisor of train.batch_size={B}"
            checks.require(B % (sampler.devices or 1) == 0, "sampler.devices", valid)


@dataclasses.dataclass(frozen=True)
class Ray(Section):
    """Processes on the machines of a Ray cluster (launch/ray_run.py); none: this process does it all."""

    section_name = "ray"
    actors: int = field(0, "processes that sample, each a part of the batch", at_least=0)
    oracles: int = field(0, "processes that are the oracle", at_least=0)
    actor_cpus: float = field(1.0, "CPUs of an actor", at_least=0)
    actor_gpus: float = field(0.0, "GPUs of an actor", at_least=0)
    oracle_cpus: float = field(1.0, "CPUs of an oracle", at_least=0)
    oracle_gpus: float = field(0.0, "GPUs of an oracle", at_least=0)
    timeout_s: float = field(600.0, "seconds for an answer of a process", above=0)
    retries: int = field(3, "losses of a process over the same question before a run ends", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a prompt for every actor, and an oracle that is not elsewhere already."""
        if checks.sound("ray.actors", "train.batch_size"):
            B = checks.config.train.batch_size
            valid = f"at most train.batch_size={B}, as they share its prompts"
            checks.require(checks.config.ray.actors <= B, "ray.actors", valid)
        if checks.sound("ray.oracles", "oracle.kind"):
            kind = checks.config.oracle.kind
            own = (*PEOPLE_KINDS, "function")
            where = "this process asks" if kind in own else "is elsewhere already"
            here = not checks.config.ray.oracles or kind not in (*REMOTE_KINDS, *own)
            checks.require(here, "ray.oracles", f"0 with oracle.kind={kind!r}, which {where}")
