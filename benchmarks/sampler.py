"""Measures a sampler's throughput in generated tokens per second.

    python -m benchmarks.sampler
    python -m benchmarks.sampler --kind vllm    # through the vLLM sidecar (make sidecar)

Each call samples 20 responses of exactly 53 tokens to each of 32 prompts of 64 tokens, at temperature 0.7.
The policy is a GPT-NeoX of 2 layers, width 128 and vocabulary 512 in fp32. The time includes the prefill.
"""

import argparse
import sys
import time

import jax
import numpy as np

from benchmarks.online_dpo_step import VOCABULARY, small_policy
from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.make import KINDS as SAMPLERS
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.actors.vllm_sampler import VllmOptions, VllmSampler
from sea_jax.runtime.allocator import keep_freed_memory
from sea_jax.runtime.mesh import make_mesh

PROMPTS, LENGTH, RESPONSES, NEW_TOKENS = 32, 64, 20, 53


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20, help="timed calls, after 2 untimed calls")
    parser.add_argument("--kind", choices=SAMPLERS, default="jax", help="the sampler to measure")
    args = parser.parse_args()
    keep_freed_memory()  # as sea_jax.main does
    model, params = small_policy()
    prompts = np.random.default_rng(0).integers(1, VOCABULARY, (PROMPTS, LENGTH), dtype=np.int32)
    # The EOS id is outside the vocabulary, so that every response has exactly NEW_TOKENS tokens.
    if args.kind == "vllm":
        options = VllmOptions(".venv-vllm/bin/python", LENGTH, "float32", max_num_seqs=PROMPTS * RESPONSES)
        sampler = VllmSampler(model, NEW_TOKENS, VOCABULARY, 0, make_mesh(), options)
    else:
        sampler = JaxSampler(model, NEW_TOKENS, VOCABULARY, 0, make_mesh(), 0)
    policy, mask = new_version(params), np.ones(prompts.shape, bool)
    seconds = []
    for i in range(args.calls + 2):
        start = time.perf_counter()
        responses = sample_now(
            sampler, policy, prompts, mask, jax.random.key(i), num_responses=RESPONSES, temperature=0.7
        )
        assert np.asarray(responses.mask).all()
        seconds.append(time.perf_counter() - start)
    sampler.close()
    rate = PROMPTS * RESPONSES * NEW_TOKENS / np.array(seconds[2:])
    print(
        f"{args.kind}, tokens per second: min {rate.min():,.0f}, median {np.median(rate):,.0f}, "
        f"max {rate.max():,.0f}"
    )
    print(f"python {sys.version.split()[0]}, jax {jax.__version__}, {jax.devices()[0].platform}")


if __name__ == "__main__":
    main()
