"""Measures the seconds per step of passive online DPO in sea_jax and in TRL.

    python -m benchmarks.online_dpo_step
    python -m benchmarks.online_dpo_step --size=pythia-1b --prompt-tokens=512    # on a GPU

Each step has 16 prompts with 2 responses of exactly 53 tokens. The policy is a GPT-NeoX with random weights:
of 2 layers, width 128 and vocabulary 512 in fp32, or of a published size with fp32 weights and bf16
activations (TRL: autocast). Both sides use the same weights and prompts and alternate, step by step. A step
consists of generation, preferences, losses, gradients and the Adam update; generation is each library's own,
without vLLM. TRL's OnlineDPOTrainer runs with the settings that are fastest on CPU
(`gradient_checkpointing=False`). The first run installs TRL into its own environment, unless `--trl-python`
names a Python that has it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from launch import environments
from sea_jax import algorithm, models
from sea_jax.models import sizes
from sea_jax.models.generate import make_sampler
from sea_jax.models.params import cast_matrices
from sea_jax.runtime.allocator import keep_freed_memory
from sea_jax.runtime.mesh import make_mesh, replicate, shard_batch
from sea_jax.state import init_state, step_keys
from sea_jax.train import assign_labels, propose, route, update
from sea_jax.types import Candidates, Params, PromptBatch

PROMPTS, NEW_TOKENS, VOCABULARY, EOS = 16, 53, 512, 0
LEARNING_RATE = 5e-7  # TRL's default
PAUSE = 0.03  # seconds of sleep before each step, in which the other side's threads stop spinning

# benchmarks/trl_worker.py depends on these versions: TRL 1.16 keeps OnlineDPOTrainer in
# trl.experimental.online_dpo, which any release may change. Every package that runs inside a timed step is
# pinned.
TRL = [
    "trl==1.16.0",
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "numpy==2.4.6",
]


def small_policy() -> tuple[models.Decoder, Params]:
    """Returns a GPT-NeoX of 2 layers, width 128 and `VOCABULARY` tokens, and its random fp32 weights."""
    config = models.PythiaConfig(
        vocab_size=VOCABULARY, num_layers=2, width=128, num_heads=4, mlp_width=512, max_length=128
    )
    model = models.Decoder(config)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def published_policy(size: str) -> tuple[models.Decoder, Params]:
    """Returns a model of a published size, such as 'pythia-1b', and random fp32 weights; activations are bf16."""
    model = models.Decoder(sizes.shape(size, dtype=jnp.bfloat16))  # pyright: ignore[reportArgumentType]
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def our_step(
    model: models.Decoder, params, prompts: np.ndarray, micro_batch: int, mesh: Mesh
) -> Callable[[int], float]:
    """Returns a function that runs step i of sea_jax and returns its seconds.

    Args:
        model: the policy's network.
        params: the starting policy's weights, also those of the reference policy.
        prompts: token ids, [N, L] int32.
        micro_batch: prompts per backward pass; 0 means the whole batch.
        mesh: devices that share the batch.
    """
    # The EOS id is outside the vocabulary, so that every response has exactly NEW_TOKENS tokens.
    sample = make_sampler(model, 2, NEW_TOKENS, 0.7, model.config.vocab_size, EOS, mesh)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    settings = algorithm.UpdateSettings(model, optimizer, micro_batch=micro_batch)
    state = init_state(jax.random.key(0), params, optimizer)
    ref_params = replicate(mesh, cast_matrices(params, model.config.dtype))
    state = replicate(mesh, state)
    mask = shard_batch(mesh, np.ones((PROMPTS, prompts.shape[1]), bool))

    def step(i: int) -> float:
        nonlocal state
        start = time.perf_counter()
        rows = np.arange(i * PROMPTS, (i + 1) * PROMPTS) % len(prompts)
        batch = PromptBatch(shard_batch(mesh, prompts[rows]), mask)
        keys = step_keys(state.key, i)
        responses = sample(state.policy.params, batch.tokens, mask, keys.sample)
        candidates = Candidates(responses.tokens, responses.mask, None)
        rewards = jnp.zeros((1, PROMPTS, 2))
        duel = propose(keys.select, rewards, strategy="passive")
        duel = route(keys.route, keys.label, duel, rewards, candidates, 10**9, gamma=1.0, num_asked=PROMPTS)
        tokens = np.asarray(responses.tokens)
        assert tokens.shape == (PROMPTS, 2, NEW_TOKENS) and np.asarray(responses.mask).all()
        reward = tokens.sum(-1) % 97  # the same reward as trl_worker.fixed_reward
        prefers_first = reward[:, 0] > reward[:, 1]
        answered = np.ones(PROMPTS, bool)
        labelled = assign_labels(keys.label, rewards, batch, candidates, duel, prefers_first, answered)
        state, metrics = update(settings, state, ref_params, shard_batch(mesh, labelled))
        assert float(metrics["step/finite"]) == 1.0
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return step


def trl_step(folder: Path, args: argparse.Namespace) -> tuple[Callable[[int], float], Callable[[], None]]:
    """Starts the TRL worker; returns a function that times step i, and one that stops the worker."""
    python = args.trl_python or environments.ensure("trl", TRL)
    worker, options = Path(__file__).with_name("trl_worker.py"), ["--new-tokens", str(NEW_TOKENS)]
    options += ["--bf16"] * (args.size != "small")
    process = subprocess.Popen(
        [python, worker, folder, folder / "prompts.npy", *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout

    def step(i: int) -> float:
        print("step", file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline() or '{"error": "the worker exited"}')  # pyright: ignore[reportOptionalMemberAccess]
        if "error" in answer:
            raise RuntimeError(f"TRL step {i}: {answer['error']}")
        return answer["seconds"]

    def close() -> None:
        process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        process.wait(timeout=60)

    return step, close


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="timed steps per side, after 5 untimed steps")
    parser.add_argument("--ours-only", action="store_true", help="do not install or run TRL")
    parser.add_argument(
        "--micro-batch", type=int, default=0, help="prompts per sea_jax backward pass; 0: all"
    )
    parser.add_argument(
        "--devices", type=int, default=0, help="that share sea_jax's batch; 0: 2 for the small policy, else 1"
    )
    parser.add_argument("--size", default="small", help="'small' or a published size, e.g. pythia-1b")
    parser.add_argument("--prompt-tokens", type=int, default=70, help="length of every prompt")
    parser.add_argument("--trl-python", default="", help="a Python with TRL; empty: makes an environment")
    args = parser.parse_args()
    keep_freed_memory()  # as sea_jax.main does
    mesh = make_mesh(args.devices or (2 if args.size == "small" else 1))
    model, params = small_policy() if args.size == "small" else published_policy(args.size)
    shape = (1024, args.prompt_tokens)
    prompts = np.random.default_rng(0).integers(1, model.config.vocab_size, shape, dtype=np.int32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save(folder, model, jax.device_get(params))
        np.save(folder / "prompts.npy", prompts)
        sides = {"sea_jax": our_step(model, params, prompts, args.micro_batch, mesh)}
        close = lambda: None  # noqa: E731
        if not args.ours_only:
            sides["trl"], close = trl_step(folder, args)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for i in range(args.steps + 5):
            for side, step in sides.items():  # alternating, so that both have the same machine load
                time.sleep(PAUSE)
                seconds[side].append(step(i))
        close()
    for side, values in seconds.items():
        timed = np.array(values[5:])
        print(
            f"{side:8s} seconds per step: min {timed.min():.4f}, median {np.median(timed):.4f}, "
            f"max {timed.max():.4f} ({len(timed)} steps)"
        )
    if "trl" in seconds:
        ratio = np.array(seconds["trl"][5:]) / np.array(seconds["sea_jax"][5:])
        print(f"ratio trl / sea_jax per step: median {np.median(ratio):.2f}, min {ratio.min():.2f}")
    print(f"python {sys.version.split()[0]}, jax {jax.__version__}, {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main()
