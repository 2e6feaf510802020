"""The sampler that uses vLLM: starts the sidecar, sends it the weights, and verifies its versions."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax.actors.sampler import PendingResponses, VersionedParams
from sea_jax.actors.sidecar import Sidecar, SidecarError, SidecarLostError
from sea_jax.actors.weight_sync import Manifest, SharedWeights
from sea_jax.credentials import without_credentials
from sea_jax.models import convert
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import BatchSlice, Responses
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.types import Array

ROOT = Path(__file__).resolve().parents[2]  # the folder of the package `sea_jax`

# Appended, not prepended: packages of our environment may be in the same folder as ours.
_PROGRAM = (
    f"import sys; sys.path.append({str(ROOT)!r}); from sea_jax.actors import vllm_sidecar as s; s.main()"
)
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # starts in a third of the time
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound to cores, it gets one
    "VLLM_HOST_IP": "127.0.0.1",  # torch.distributed listens there, even with one worker
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # it needs no more than the config, which we send
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads leave the cores to the learner
    # As in runtime/allocator.py: the memory of one layer's weights is reused for the next.
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}  # fmt: skip
_MAX_BATCHED_TOKENS = 8192  # of prompts in one forward pass


class VllmOptions(NamedTuple):
    """Options of the sidecar; see sea_jax/config/train.py."""

    python: str
    prompt_length: int  # L, tokens
    dtype: str
    max_num_seqs: int = 256
    kv_cache_gb: float = 1.0
    start_timeout: float = 300.0  # seconds
    timeout: float = 600.0  # seconds
    restarts: int = 2  # per batch


@dataclasses.dataclass
class _Batch:
    """A request for responses, and its answer once there is one."""

    awaited: str
    header: dict[str, Any]
    arrays: tuple[np.ndarray, ...]
    seconds: dict[str, float]
    sent: bool = False
    losses: int = 0  # of sidecars
    answer: list[np.ndarray] | None = None


class VllmSampler:
    """A `Sampler` that sends prompts to a vLLM sidecar.

    Args:
        model: the policy's module.
        max_tokens: T, EOS included.
        eos_id, pad_id: token ids.
        mesh: the devices that get the responses.
        options: of the sidecar.

    Attributes:
        seconds: for the responses read last: waiting for the weights ('learn'), sending them ('sync'),
            sampling ('generate').
        restarts: number of sidecars that were replaced.
    """

    def __init__(
        self, model: Decoder, max_tokens: int, eos_id: int, pad_id: int, mesh: Mesh, options: VllmOptions
    ):
        self.seconds: dict[str, float] = {}
        self.restarts = 0
        self._model, self._mesh, self._options = model, mesh, options
        self._max_tokens, self._eos_id, self._pad_id = max_tokens, eos_id, pad_id
        self._weights = SharedWeights()
        self._manifest: Manifest | None = None
        self._written_version = 0  # in the shared memory
        self._loaded_version = 0  # in the sidecar
        self._unread: _Batch | None = None
        self.sidecar: Sidecar | None = None

    def begin(
        self, policy: VersionedParams, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray,
        key: Array, *, num_responses: int, temperature: float, batch_slice: BatchSlice | None = None,
    ) -> PendingResponses:  # fmt: skip
        """Starts to sample; see `Sampler.begin`. An earlier batch is finished first: one at a time.

        A sidecar that is lost is replaced and gets the batch again, with the same seeds, so the responses are
        the same.

        Raises:
            SidecarError: more than `options.restarts` sidecars were lost over this batch, or one sampled with
                other weights; the returned function raises it too.
        """
        self._read_answer()
        start = time.perf_counter()
        jax.block_until_ready(policy.params)
        seconds = {"learn": time.perf_counter() - start, "sync": 0.0, "generate": 0.0}
        tokens, mask = mesh_lib.to_host((prompts, prompt_mask))
        # All greedy responses to a prompt are equal, and vLLM refuses to sample more than one.
        M = num_responses if temperature else 1
        ends = [self._eos_id] if self._eos_id < self._model.config.vocab_size else []
        header = dict(
            kind="generate", num_responses=M, max_tokens=self._max_tokens, temperature=temperature, ends=ends
        )
        first, total = batch_slice or BatchSlice(0, len(tokens))
        seeds = prompt_seeds(key, total, M)[first : first + len(tokens)]
        arrays = tokens[mask].astype(np.int32), mask.sum(-1).astype(np.int32), seeds
        batch = _Batch(f"{M} responses to each of {len(tokens)} prompts", header, arrays, seconds)
        self._write(policy)
        self._unread = batch
        try:
            self._send(batch)
        except SidecarLostError as error:
            self._handle_loss(batch, error)
        return lambda: self._responses(batch, len(tokens), M, num_responses)

    def close(self) -> None:
        """Ends the sidecar and frees the weights' memory."""
        if self.sidecar is not None:
            self.sidecar.end()
        self._weights.close()

    def load(self, policy: VersionedParams) -> None:
        """Starts a sidecar if there is none, and loads these weights if it has others.

        Raises:
            SidecarError: the sidecar does not start, or does not load them.
        """
        self._read_answer()
        self._write(policy)
        self._load()

    def start(self) -> None:
        """Starts a sidecar and waits for its engine; a failed start is not repeated."""
        options, config = self._options, self._model.config
        length = options.prompt_length + self._max_tokens
        self._loaded_version = 0
        own = ("PYTHON", "JAX_", "XLA_")
        inherited = {k: v for k, v in without_credentials(os.environ).items() if not k.startswith(own)}
        command = [options.python, "-I", "-c", _PROGRAM]
        sidecar = Sidecar("vLLM sidecar", command, inherited | _ENVIRONMENT, (self._weights.fd,))
        engine = dict(
            dtype=options.dtype, seed=0, max_num_seqs=options.max_num_seqs,
            max_model_len=length, max_num_batched_tokens=max(length, _MAX_BATCHED_TOKENS),
            # vLLM's CPU build fails on a seeded draw after one chunk of a prompt.
            enable_chunked_prefill=False,
            kv_cache_memory_bytes=int(options.kv_cache_gb * 2**30),
        )  # fmt: skip
        header = dict(kind="start", model=config.to_hf(), options=engine)
        try:
            sidecar.request(f"its engine ({options.python})", header, timeout=options.start_timeout)
        except SidecarLostError as error:
            raise SidecarError(str(error)) from None
        except SidecarError:
            sidecar.end()
            raise
        self.sidecar = sidecar

    def _send(self, batch: _Batch) -> None:
        """Sends a batch, after the weights if the sidecar lacks them."""
        start = time.perf_counter()
        self._load()
        assert self.sidecar is not None
        self.sidecar.send(batch.awaited, batch.header, *batch.arrays, timeout=self._options.timeout)
        batch.sent = True
        batch.seconds["sync"] += time.perf_counter() - start

    def _read_answer(self) -> None:
        """Waits for the answer to the unread batch, if any, from the sidecar or from its replacement."""
        batch, self._unread = self._unread, None
        while batch is not None and batch.answer is None:
            try:
                if not batch.sent:
                    self._send(batch)
                start = time.perf_counter()
                assert self.sidecar is not None
                header, arrays = self.sidecar.receive(batch.awaited, timeout=self._options.timeout)
                self._verify_weights(header, batch.awaited)
                batch.seconds["generate"] += time.perf_counter() - start
                batch.answer = arrays
            except SidecarLostError as error:
                self._handle_loss(batch, error)

    def _handle_loss(self, batch: _Batch, error: SidecarLostError) -> None:
        """Marks the batch to be sent to a new sidecar; raises the error after too many losses."""
        self.sidecar, batch.sent = None, False
        batch.losses += 1
        if batch.losses > self._options.restarts:
            raise error
        self.restarts += 1
        print(f"{error}; starting another", file=sys.stderr, flush=True)

    def _write(self, policy: VersionedParams) -> None:
        """Writes the weights to the shared memory, from which any later sidecar can load them."""
        if self._written_version != policy.version:
            params = mesh_lib.to_host(policy.params)
            self._manifest = self._weights.write(convert.hf_views(self._model, params))
            self._written_version = policy.version

    def _load(self) -> None:
        """Makes a sidecar load the weights in the shared memory, unless it has."""
        if self.sidecar is None:
            self.start()
        if self._loaded_version != self._written_version:
            assert self.sidecar is not None and self._manifest is not None
            awaited = f"weights of version {self._written_version} to be loaded"
            header = dict(kind="load", version=str(self._written_version), rows=self._manifest.rows)
            answer, _ = self.sidecar.request(awaited, header, timeout=self._options.timeout)
            self._verify_weights(answer, awaited)
            self._loaded_version = self._written_version

    def _verify_weights(self, header: dict[str, Any], awaited: str) -> None:
        """Raises SidecarError unless an answer was computed with the weights in the shared memory."""
        assert self._manifest is not None
        ours = str(self._written_version), self._manifest.digest
        theirs = header["version"], header["digest"]
        if theirs != ours:
            raise SidecarError(
                f"vLLM sidecar: waited for {awaited}: its weights are version {theirs[0]} with digest "
                f"{theirs[1]}, the policy's version {ours[0]} with digest {ours[1]}"
            )

    def _responses(self, batch: _Batch, B: int, sampled: int, M: int) -> Responses:
        """Pads concatenated responses and places them on the mesh, repeating each M / sampled times."""
        if batch.answer is None:  # else the unread batch is a later one, which is not waited for here
            self._read_answer()
        assert batch.answer is not None
        self.seconds = batch.seconds
        flat, lengths, flat_logprobs = batch.answer
        mask = np.arange(self._max_tokens) < lengths[:, None]
        tokens, logprobs = np.full(mask.shape, self._pad_id, np.int32), np.zeros(mask.shape, np.float32)
        tokens[mask], logprobs[mask] = flat, flat_logprobs
        rows = lambda x: np.repeat(x.reshape(B, sampled, -1), M // sampled, axis=1)  # noqa: E731
        return Responses(*mesh_lib.shard_batch(self._mesh, (rows(tokens), rows(mask), rows(logprobs))))


def prompt_seeds(key: Array, num_prompts: int, num_responses: int) -> np.ndarray:
    """Derives vLLM's seeds from a key, at least M apart: sample i of a prompt uses the prompt's seed + i.

    Args:
        key: [] key.
        num_prompts: B.
        num_responses: M.

    Returns:
        [B] int64.
    """
    high, low = (int(x) for x in np.asarray(jax.random.bits(key, (2,), np.uint32)))
    return ((high >> 2 << 32) + low) + num_responses * np.arange(num_prompts, dtype=np.int64)
