"""Who writes the responses (Alg. 2, line 4): the process that learns, a vLLM beside it, or Ray's actors."""

import itertools
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax.checks import require
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Part, Responses, make_sampler
from sea_jax.models.params import cast_matrices
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime.vllm_sampler import Options, VllmSampler
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Params

KINDS = ("jax", "vllm")
_versions = itertools.count(1)

Pending = Callable[[], Responses]


class Versioned(NamedTuple):
    """A policy's parameters under a number that no others of this process have: see `versioned`."""

    params: Params
    version: int


def versioned(params: Params) -> Versioned:
    """Numbers parameters, for every sampler to know whether it has these."""
    return Versioned(params, next(_versions))


class Lengths(NamedTuple):
    """What a sampler needs to know of a task."""

    prompt_length: int
    response_length: int
    eos_id: int
    pad_id: int


class Sampler(Protocol):
    """The policy as something that writes; nothing else tells one implementation from another.

    Attributes:
        seconds: of the responses that were read last, what was waited for, by the stages of a step ('learn',
            'sync', 'generate'); empty where responses are handed out before they are there.
    """

    seconds: dict[str, float]

    def begin(
        self, policy: Versioned, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray, key: Array,
        *, num_responses: int, temperature: float, part: Part | None = None,
    ) -> Pending:  # fmt: skip
        """Begins to sample M responses to each of B left-padded prompts.

        The parameters are read, or about to be, when this returns: they may be donated.

        Args:
            policy: what samples; whoever keeps a copy compares the version.
            prompts: [B, L] int32, left-padded.
            prompt_mask: [B, L] bool.
            key: [] key; the same key gives the same responses.
            num_responses: M.
            temperature: 0 is greedy, and its log-probs are those at temperature 1.
            part: where these are prompts of a larger batch, which others sample with the same key.

        Returns:
            What hands out Responses [B, M, T], perhaps not computed yet; call it once.
        """
        ...

    def close(self) -> None:
        """Ends what was started for it."""
        ...


def generate(sampler: Sampler, policy: Versioned, *prompts_and_key: Any, **options: Any) -> Responses:
    """What `Sampler.begin` begins, with its arguments: Responses [B, M, T], perhaps not computed yet."""
    return sampler.begin(policy, *prompts_and_key, **options)()


class JaxSampler:
    """`models.generate` on the devices of the run, or on others beside them.

    Args:
        model: the policy's module.
        max_tokens: T, EOS included.
        eos_id, pad_id: token ids.
        home: the mesh that learns; responses are brought there.
        micro_batch: prompts sampled at once, as `models.generate` takes it.
        apart: the mesh that samples, if it is another one. It gets every version of the policy once.
    """

    def __init__(
        self, model: Decoder, max_tokens: int, eos_id: int, pad_id: int, home: Mesh, micro_batch: int,
        apart: Mesh | None = None,
    ):  # fmt: skip
        self.seconds = {}
        self._home, self._apart = home, apart
        self._fixed = model, max_tokens, eos_id, pad_id, apart or home, micro_batch
        self._copy: Versioned | None = None

    def begin(
        self, policy: Versioned, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray, key: Array,
        *, num_responses: int, temperature: float, part: Part | None = None,
    ) -> Pending:  # fmt: skip
        """See `Sampler.begin`."""
        model, max_tokens, *rest = self._fixed
        first, total = part or (0, 0)
        sample = make_sampler(model, num_responses, max_tokens, temperature, *rest, total=total)
        if self._apart is None:
            responses = sample(policy.params, prompts, prompt_mask, key, first)
        else:
            tokens, mask = mesh_lib.split(self._apart, (prompts, prompt_mask))
            key = mesh_lib.replicate(self._apart, key)
            responses = mesh_lib.split(self._home, sample(self._copied(policy), tokens, mask, key, first))
        return lambda: responses

    def _copied(self, policy: Versioned) -> Params:
        """The parameters on the mesh that samples, in the precision that it computes in."""
        assert self._apart is not None
        if self._copy is None or self._copy.version != policy.version:
            self._copy = None  # its memory is free before the next needs some
            params = cast(policy.params, self._fixed[0].config.dtype)
            self._copy = Versioned(mesh_lib.replicate(self._apart, params), policy.version)
        return self._copy.params

    def close(self) -> None:
        """Nothing was started."""


cast = jax.jit(cast_matrices, static_argnums=1)  # (parameters, dtype): as a sampler computes with them


def make(config, task: Task | Lengths, model: Decoder, mesh: Mesh, apart: Mesh | None = None) -> Sampler:
    """The sampler of an experiment, by config.sampler.kind, or config.ray.actors of them elsewhere.

    Args:
        config: the experiment's.
        task: its lengths, eos_id and pad_id.
        model: the policy's module.
        mesh: the devices of the run.
        apart: those that sample, where they are others.
    """
    if config.ray.actors:
        from sea_jax.runtime.ray_workers import RaySampler  # which imports this module, and Ray

        lengths = Lengths(task.prompt_length, task.response_length, task.eos_id, task.pad_id)
        return RaySampler(config, lengths, model, mesh)
    fixed = model, task.response_length, task.eos_id, task.pad_id, mesh
    if config.sampler.kind == "vllm":
        fields = {name: config.sampler[name] for name in Options._fields if name in config.sampler}
        options = Options(prompt_length=task.prompt_length, dtype=config.policy.dtype, **fields)
        return VllmSampler(*fixed, options)
    return JaxSampler(*fixed, config.sampler.micro_batch, apart)


def validate(config) -> None:
    """Raises InputError at the first field of config.sampler that cannot work, but for micro_batch."""
    cfg, batch = config.sampler, config.train.batch_size
    hosts = jax.distributed.is_initialized() and jax.process_count() > 1 and not config.ray.actors
    _require(cfg.kind in KINDS, "kind", cfg.kind, f"one of {KINDS}")
    _require(cfg.devices >= 0, "devices", cfg.devices, "at least 0")
    alone = not (cfg.devices and config.ray.actors)
    _require(alone, "devices", cfg.devices, f"0 with ray.actors={config.ray.actors}, which have devices")
    if cfg.kind == "jax":
        _require(not (cfg.devices and hosts), "devices", cfg.devices, "0 in a run on several hosts")
        valid = f"0, or a divisor of train.batch_size={batch}"
        _require(batch % (cfg.devices or 1) == 0, "devices", cfg.devices, valid)
        return
    _require(not hosts, "kind", cfg.kind, "'jax' on several hosts")
    # A path is looked for where the command runs, a bare name on the PATH.
    found = shutil.which(cfg.python)
    _require(found is not None, "python", cfg.python, "the Python of an environment with vLLM: make sidecar")
    for name in ("max_num_seqs", "restarts"):
        least = int(name == "max_num_seqs")
        _require(cfg[name] >= least, name, cfg[name], f"at least {least}")
    for name in ("kv_cache_gb", "start_timeout", "timeout"):
        _require(0 < cfg[name] < float("inf"), name, cfg[name], "a number above 0")


def _require(condition: bool, name: str, value: object, valid: str) -> None:
    require(condition, f"sampler.{name}", value, valid)
