"""Runs vLLM in a process of its own: token ids in and out, weights through shared memory.

Only this file imports vLLM. The Python of another environment runs it (`make sidecar`), so it imports only
those files of this package that need nothing but NumPy. `actors/vllm_sampler.py` starts it; `Server` lists
the messages.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngineFactory,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
    ParallelLMHead,
)
from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from sea_jax.actors import framing, weight_sync

BACKEND = "sea_jax"
_SEND_TIMEOUT_S = 60.0  # for the parent to read an answer
_PARENT_CHECK_INTERVAL_S = 1.0


@dataclass
class InitInfo(WeightTransferInitInfo):
    """The path of the shared memory."""

    path: str


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """The contents of the shared memory: `weight_sync.Manifest.rows`."""

    rows: list[list[Any]]


class SharedMemoryEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """A backend of vLLM's weight-transfer API that reads memory shared with the learner.

    Attributes:
        digest: of the weights that were read last; None while they are incomplete.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    digest: str | None = None
    path = ""
    _memory: np.memmap | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.path = init_info.path

    def start_weight_update(self) -> None:
        # Bare load_weights fails on weights packed for the CPU, and leaves the model half updated.
        self.digest = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads every tensor by its Hugging Face name; raises ValueError if a parameter gets none."""
        if self._memory is None or self._memory.size != os.stat(self.path).st_size:
            self._memory = np.memmap(self.path, np.uint8, mode="r+")  # only read, but torch wants it writable
        memory = self._memory
        names = {name for name, _ in self.model.named_parameters()}
        if self.model_config.hf_config.tie_word_embeddings:
            names -= {f"{name}.weight" for name, _ in self._heads()}
        loaded = self.model.load_weights(tensors(memory, update_info.rows))
        if loaded is not None and (missing := names - set(loaded)):
            raise ValueError(f"no weights for {sorted(missing)[:3]} ({len(missing)} in all)")
        self._read = weight_sync.digest(memory, update_info.rows)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # A tied head shares the embedding's parameter, but on a CPU it computes with a packed copy, which the
        # reload above does not update.
        for _, head in self._heads():
            head.quant_method.process_weights_after_loading(head)
        self.digest = self._read

    def _heads(self) -> list[tuple[str, Any]]:
        return [(k, m) for k, m in self.model.named_modules() if isinstance(m, ParallelLMHead)]

    def shutdown(self) -> None:
        """Does nothing: nothing is held between updates."""


def tensors(memory: np.ndarray, rows: list[list[Any]]):
    """Yields (name, tensor) of each row; the tensors are views of the shared memory."""
    for name, dtype, shape, transposed, offset in rows:
        size = int(np.prod(shape)) * weight_sync.itemsize(dtype)
        flat = torch.from_numpy(memory[offset : offset + size])
        tensor = flat.view(getattr(torch, dtype)).view(shape)
        yield name, tensor.T if transposed else tensor


class Extension:
    """Methods added to vLLM's workers. They import this file for it, which registers the backend."""

    def weights_digest(self) -> str | None:
        """Returns the digest of the weights that this worker computes with."""
        return self.weight_transfer_engine.digest  # pyright: ignore[reportAttributeAccessIssue]


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryEngine)


class Server:
    """Answers the parent's messages, one at a time.

    start     model config, engine options         -> ready
    load      version, manifest rows               -> version and digest of the loaded weights
    generate  prompts, seeds, sampling parameters  -> tokens, log-probs; version and digest of the weights
    """

    def __init__(self, sock: socket.socket, weights_fd: int):
        self.sock, self.path = sock, f"/proc/{os.getpid()}/fd/{weights_fd}"
        self.llm: Any = None

    def serve(self) -> None:
        """Answers until the parent closes its side."""
        while True:
            try:
                header, arrays = framing.receive(self.sock, None)  # no timeout: it ends with the parent
            except framing.ClosedError:
                return
            try:
                answer, out = getattr(self, f"on_{header.pop('kind')}")(*arrays, **header)
            except Exception as error:  # sent to the parent, which decides
                traceback.print_exc()
                answer, out = {"error": f"{type(error).__name__}: {error}"}, ()
            framing.send(self.sock, answer, *out, timeout=_SEND_TIMEOUT_S)

    def on_start(self, model: dict[str, Any], options: dict[str, Any]) -> tuple[dict, tuple]:
        """Makes an engine with random weights, which `load` replaces."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(model))
            self.llm = LLM(
                folder,
                skip_tokenizer_init=True,
                trust_remote_code=False,  # an option of this name would be an error
                load_format="dummy",
                generation_config="vllm",  # no sampling defaults of the model
                logprobs_mode="processed_logprobs",  # at the sampling temperature
                enforce_eager=True,
                worker_extension_cls=f"{Extension.__module__}.{Extension.__name__}",
                weight_transfer_config={"backend": BACKEND},
                **options,
            )
        self.llm.init_weight_transfer_engine({"init_info": {"path": self.path}})
        return {"ready": True}, ()

    def on_load(self, version: str, rows: list[list[Any]]) -> tuple[dict, tuple]:
        """Loads the weights in the shared memory."""
        self.llm.start_weight_update()
        self.llm.update_weights({"update_info": {"rows": rows}})
        self.llm.finish_weight_update(weight_version=version)
        # The cached keys and values were computed with the previous weights.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")
        return self._weights(), ()

    def on_generate(
        self, tokens: np.ndarray, lengths: np.ndarray, seeds: np.ndarray,
        *, num_responses: int, max_tokens: int, temperature: float, ends: list[int],
    ) -> tuple[dict, tuple]:  # fmt: skip
        """Samples M responses to each of B prompts.

        Args:
            tokens: [sum of lengths] int32, the concatenated prompts.
            lengths: [B] int32, of the prompts, in tokens.
            seeds: [B] int64; sample i of a prompt uses its seed + i.
            num_responses: M.
            max_tokens: T.
            temperature: of sampling.
            ends: tokens that end a response; they are kept.

        Returns:
            Version and digest of the weights; the concatenated responses int32, their lengths [B * M] int32,
            and log-probs f32 like the responses.
        """
        prompts = np.split(tokens, np.cumsum(lengths)[:-1])
        # Only our EOS ends a response: vLLM's is the default of the architecture's config.
        shared = dict(
            n=num_responses, temperature=temperature, max_tokens=max_tokens, stop_token_ids=ends,
            ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
        )  # fmt: skip
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt.tolist()} for prompt in prompts],
            [SamplingParams(seed=int(seed), **shared) for seed in seeds],  # pyright: ignore[reportArgumentType]
            use_tqdm=False,
        )
        responses = [response for output in outputs for response in output.outputs]
        ids = [np.asarray(response.token_ids, np.int32) for response in responses]
        logprobs = [np.asarray(response.logprobs.logprobs, np.float32) for response in responses]
        lengths = np.array([len(x) for x in ids], np.int32)
        return self._weights(), (np.concatenate(ids), lengths, np.concatenate(logprobs))

    def _weights(self) -> dict[str, Any]:
        """Returns the version of the weights, and their digest in all workers (several if they disagree)."""
        digests = sorted({str(x) for x in self.llm.collective_rpc("weights_digest")})
        return {"version": self.llm.get_weight_version(), "digest": ",".join(digests)}


def main() -> None:
    """Serves the parent: `python -c … <socket fd> <memory fd> <parent's id>`."""
    sock_fd, weights_fd, parent = map(int, sys.argv[1:4])
    for fd in (sock_fd, weights_fd):
        os.set_inheritable(fd, False)  # the socket closes with this process, not with its children

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_INTERVAL_S)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    with socket.socket(fileno=sock_fd) as sock:
        Server(sock, weights_fd).serve()
    os._exit(0)  # vLLM's shutdown takes seconds and saves nothing
