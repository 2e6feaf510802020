"""Who writes the responses (Alg. 2, line 4): the process that learns, or a vLLM beside it."""

import itertools
import shutil
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax.errors import InputError
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses, make_sampler
from sea_jax.runtime.vllm_sampler import Options, VllmSampler
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Params

KINDS = ("jax", "vllm")
_versions = itertools.count(1)


class Versioned(NamedTuple):
    """A policy's parameters under a number that no others of this process have: see `versioned`."""

    params: Params
    version: int


def versioned(params: Params) -> Versioned:
    """Numbers parameters, for every sampler to know whether it has these."""
    return Versioned(params, next(_versions))


class Sampler(Protocol):
    """The policy as something that writes; nothing else tells one implementation from another.

    Attributes:
        seconds: of the last `generate`, what it waited for before it returned, by the stages of a step
            ('learn', 'sync', 'generate'); empty where it returns before the responses are there.
    """

    seconds: dict[str, float]

    def generate(
        self, policy: Versioned, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray, key: Array,
        *, num_responses: int, temperature: float,
    ) -> Responses:  # fmt: skip
        """Samples M responses to each of B left-padded prompts.

        Args:
            policy: what samples; whoever keeps a copy compares the version.
            prompts: [B, L] int32, left-padded.
            prompt_mask: [B, L] bool.
            key: [] key; the same key gives the same responses.
            num_responses: M.
            temperature: 0 is greedy, and its log-probs are those at temperature 1.

        Returns:
            Responses [B, M, T], perhaps not computed yet.
        """
        ...

    def close(self) -> None:
        """Ends what was started for it."""
        ...


class JaxSampler:
    """`models.generate` on the devices of the run.

    Args:
        model: the policy's module.
        max_tokens: T, EOS included.
        eos_id, pad_id: token ids.
        mesh: its devices share the prompts.
        micro_batch: prompts sampled at once, as `models.generate` takes it.
    """

    def __init__(
        self, model: Decoder, max_tokens: int, eos_id: int, pad_id: int, mesh: Mesh, micro_batch: int
    ):
        self.seconds = {}
        self._fixed = model, max_tokens, eos_id, pad_id, mesh, micro_batch

    def generate(
        self, policy: Versioned, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray, key: Array,
        *, num_responses: int, temperature: float,
    ) -> Responses:  # fmt: skip
        """See `Sampler.generate`."""
        model, max_tokens, *rest = self._fixed
        sample = make_sampler(model, num_responses, max_tokens, temperature, *rest)
        return sample(policy.params, prompts, prompt_mask, key)

    def close(self) -> None:
        """Nothing was started."""


def make(config, task: Task, model: Decoder, mesh: Mesh) -> Sampler:
    """The sampler of an experiment, by config.sampler.kind."""
    if config.sampler.kind == "vllm":
        fields = {name: config.sampler[name] for name in Options._fields if name in config.sampler}
        options = Options(prompt_length=task.prompt_length, dtype=config.policy.dtype, **fields)
        return VllmSampler(model, task.response_length, task.eos_id, task.pad_id, mesh, options)
    return JaxSampler(model, task.response_length, task.eos_id, task.pad_id, mesh, config.sampler.micro_batch)


def validate(config) -> None:
    """Raises InputError at the first field of config.sampler that cannot work, but for micro_batch."""
    cfg = config.sampler
    _require(cfg.kind in KINDS, "kind", cfg.kind, f"one of {KINDS}")
    if cfg.kind == "jax":
        return
    # A path is looked for where the command runs, a bare name on the PATH.
    found = shutil.which(cfg.python)
    _require(found is not None, "python", cfg.python, "the Python of an environment with vLLM: make sidecar")
    for name in ("max_num_seqs", "restarts"):
        least = int(name == "max_num_seqs")
        _require(cfg[name] >= least, name, cfg[name], f"at least {least}")
    for name in ("kv_cache_gb", "start_timeout", "timeout"):
        _require(0 < cfg[name] < float("inf"), name, cfg[name], "a number above 0")
    hosts = jax.distributed.is_initialized() and jax.process_count() > 1
    _require(not hosts, "kind", cfg.kind, "'jax' on several hosts")


def _require(condition: bool, name: str, value: object, valid: str) -> None:
    if not condition:
        raise InputError(f"config.sampler.{name}={value!r}: valid is {valid}")
