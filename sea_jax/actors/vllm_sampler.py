"""The sampler that has vLLM write: starts the sidecar, keeps its weights up to date, checks that they are."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax.actors.sidecar import Sidecar, SidecarError, SidecarLostError
from sea_jax.actors.weight_sync import Manifest, SharedWeights
from sea_jax.models import convert
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import BatchSlice, Responses
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.types import Array

ROOT = Path(__file__).resolve().parents[2]  # where the package `sea_jax` lies

# Appended, not prepended: beside our package there may lie others of our environment.
_RUN = f"import sys; sys.path.append({str(ROOT)!r}); from sea_jax.runtime import vllm_sidecar as s; s.main()"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the sidecar's own process: it starts in a third
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, it is left one core
    "VLLM_HOST_IP": "127.0.0.1",  # torch.distributed's store, even of one worker, listens there
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # it needs no more than a shape, and gets that from us
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait for work leave the cores to us
    # As runtime/allocator.py does here: memory that a layer's weights were read into serves the next.
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}  # fmt: skip
_BATCHED_TOKENS = 8192  # of prompts, read at once


class Options(NamedTuple):
    """How the sidecar runs; see sea_jax/config/train.py."""

    python: str
    prompt_length: int  # L, tokens
    dtype: str
    max_num_seqs: int = 256
    kv_cache_gb: float = 1.0
    start_timeout: float = 300.0
    timeout: float = 600.0
    restarts: int = 2


@dataclasses.dataclass
class _Batch:
    """What a sidecar is asked for, and what has come of it."""

    awaited: str
    header: dict[str, Any]
    arrays: tuple[np.ndarray, ...]
    seconds: dict[str, float]
    sent: bool = False
    losses: int = 0  # of sidecars
    answer: list[np.ndarray] | None = None


class VllmSampler:
    """See `Sampler`.

    Args:
        model: the policy's module.
        max_tokens: T, EOS included.
        eos_id, pad_id: token ids.
        mesh: its devices get the responses.
        options: of the sidecar.

    Attributes:
        seconds: of the last `generate`: waiting for the weights ('learn'), handing them over ('sync'),
            sampling ('generate').
        restarts: how often a sidecar was replaced.
    """

    def __init__(
        self, model: Decoder, max_tokens: int, eos_id: int, pad_id: int, mesh: Mesh, options: Options
    ):
        self.seconds: dict[str, float] = {}
        self.restarts = 0
        self._model, self._mesh, self._options = model, mesh, options
        self._max_tokens, self._eos_id, self._pad_id = max_tokens, eos_id, pad_id
        self._weights = SharedWeights()
        self._manifest: Manifest | None = None
        self._written = 0  # the version in the shared memory
        self._loaded = 0  # the version that the sidecar has
        self._begun: _Batch | None = None
        self.sidecar: Sidecar | None = None

    def begin(
        self, policy, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray, key: Array,
        *, num_responses: int, temperature: float, batch_slice: BatchSlice | None = None,
    ) -> Callable[[], Responses]:  # fmt: skip
        """See `Sampler.begin`. What was begun before is finished first: one batch at a time.

        A sidecar that is lost on the way is replaced and asked again: the same seeds, so the same responses.

        Raises:
            SidecarError: where that has failed `options.restarts` times in a row, or it sampled with other
                weights; what is returned raises it too.
        """
        self._finish()
        start = time.perf_counter()
        jax.block_until_ready(policy.params)
        seconds = {"learn": time.perf_counter() - start, "sync": 0.0, "generate": 0.0}
        tokens, mask = mesh_lib.fetch((prompts, prompt_mask))
        # Greedy responses to a prompt are all the same, and vLLM refuses to write more than one.
        M = num_responses if temperature else 1
        ends = [self._eos_id] if self._eos_id < self._model.config.vocab_size else []
        header = dict(
            kind="generate", num_responses=M, max_tokens=self._max_tokens, temperature=temperature, ends=ends
        )  # fmt: skip
        first, total = batch_slice or BatchSlice(0, len(tokens))
        drawn = seeds(key, total, M)[first : first + len(tokens)]
        arrays = tokens[mask].astype(np.int32), mask.sum(-1).astype(np.int32), drawn
        batch = _Batch(f"{M} responses to each of {len(tokens)} prompts", header, arrays, seconds)
        self._write(policy)
        self._begun = batch
        try:
            self._send(batch)
        except SidecarLostError as error:
            self._lost(batch, error)
        return lambda: self._responses(batch, len(tokens), M, num_responses)

    def close(self) -> None:
        """Ends the sidecar and gives the weights' memory back."""
        if self.sidecar is not None:
            self.sidecar.end()
        self._weights.close()

    def _send(self, batch: _Batch) -> None:
        began = time.perf_counter()
        self._load()
        assert self.sidecar is not None
        self.sidecar.tell(batch.awaited, batch.header, *batch.arrays, timeout=self._options.timeout)
        batch.sent = True
        batch.seconds["sync"] += time.perf_counter() - began

    def _finish(self) -> None:
        """Reads the answer to what was begun, from the first sidecar or from one that replaced it."""
        batch, self._begun = self._begun, None
        while batch is not None and batch.answer is None:
            try:
                if not batch.sent:
                    self._send(batch)
                began = time.perf_counter()
                assert self.sidecar is not None
                header, out = self.sidecar.hear(batch.awaited, timeout=self._options.timeout)
                self._check(header, batch.awaited)
                batch.seconds["generate"] += time.perf_counter() - began
                batch.answer = out
            except SidecarLostError as error:
                self._lost(batch, error)

    def _lost(self, batch: _Batch, error: SidecarLostError) -> None:
        """Has the batch sent again, to another sidecar; raises the error where that was done often enough."""
        self.sidecar, batch.sent = None, False
        batch.losses += 1
        if batch.losses > self._options.restarts:
            raise error
        self.restarts += 1
        print(f"{error}; starting another", file=sys.stderr, flush=True)

    def load(self, policy) -> None:
        """Sees to it that there is a sidecar and that it has these weights; does nothing where it has.

        Raises:
            SidecarError: where it cannot be started, or does not take them.
        """
        self._finish()
        self._write(policy)
        self._load()

    def _write(self, policy) -> None:
        """The weights to the shared memory, from where a sidecar has them whenever it needs them."""
        if self._written != policy.version:
            params = mesh_lib.fetch(policy.params)
            self._manifest = self._weights.write(convert.hf_views(self._model, params))
            self._written = policy.version

    def _load(self) -> None:
        """What lies in the shared memory to a sidecar."""
        if self.sidecar is None:
            self.start()
        if self._loaded != self._written:
            assert self.sidecar is not None and self._manifest is not None
            awaited = f"weights of version {self._written} to be loaded"
            request = dict(kind="load", version=str(self._written), rows=self._manifest.rows)
            header, _ = self.sidecar.ask(awaited, request, timeout=self._options.timeout)
            self._check(header, awaited)
            self._loaded = self._written

    def _check(self, header: dict[str, Any], awaited: str) -> None:
        """Of every batch: it was made with the weights that lie in the shared memory."""
        assert self._manifest is not None
        ours, theirs = (str(self._written), self._manifest.digest), (header["version"], header["digest"])
        if theirs != ours:
            raise SidecarError(
                f"vLLM sidecar: waited for {awaited}: its weights are version {theirs[0]} with digest "
                f"{theirs[1]}, the policy's version {ours[0]} with digest {ours[1]}"
            )

    def start(self) -> None:
        """Starts a process and waits for its engine; one that cannot start is not tried again."""
        options, config = self._options, self._model.config
        length = options.prompt_length + self._max_tokens
        self._loaded = 0
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_"))}
        sidecar = Sidecar(
            "vLLM sidecar", [options.python, "-I", "-c", _RUN], kept | _ENVIRONMENT, (self._weights.fd,)
        )
        engine = dict(
            dtype=options.dtype, seed=0, max_num_seqs=options.max_num_seqs,
            max_model_len=length, max_num_batched_tokens=max(length, _BATCHED_TOKENS),
            # Of a prompt read in parts the CPU build cannot take a seeded draw back, and fails.
            enable_chunked_prefill=False,
            kv_cache_memory_bytes=int(options.kv_cache_gb * 2**30),
        )  # fmt: skip
        request = dict(kind="start", model=config.to_hf(), options=engine)
        try:
            sidecar.ask(f"its engine ({options.python})", request, timeout=options.start_timeout)
        except SidecarLostError as error:
            raise SidecarError(str(error)) from None
        except SidecarError:
            sidecar.end()
            raise
        self.sidecar = sidecar

    def _responses(self, batch: _Batch, B: int, drawn: int, M: int) -> Responses:
        """Tokens one response after the other -> padded arrays on the mesh, each response M / drawn times."""
        if batch.answer is None:  # else what was begun since is still being written: not waited for here
            self._finish()
        assert batch.answer is not None
        self.seconds = batch.seconds
        flat, lengths, flat_logprobs = batch.answer
        mask = np.arange(self._max_tokens) < lengths[:, None]
        tokens, logprobs = np.full(mask.shape, self._pad_id, np.int32), np.zeros(mask.shape, np.float32)
        tokens[mask], logprobs[mask] = flat, flat_logprobs
        rows = lambda x: np.repeat(x.reshape(B, drawn, -1), M // drawn, axis=1)  # noqa: E731
        return Responses(*mesh_lib.split(self._mesh, (rows(tokens), rows(mask), rows(logprobs))))


def seeds(key: Array, num_prompts: int, num_responses: int) -> np.ndarray:
    """[B] int64 seeds from a key, at least M apart: sample i of a prompt has the prompt's seed + i."""
    high, low = (int(x) for x in np.asarray(jax.random.bits(key, (2,), np.uint32)))
    return ((high >> 2 << 32) + low) + num_responses * np.arange(num_prompts, dtype=np.int64)
