"""Measures the start-up time of the vLLM sidecar and the time to send it new weights, in seconds.

    make sidecar
    python -m benchmarks.weight_push

The model is by default a GPT-NeoX of Pythia 160M's shape with random fp32 weights. The timed operations are:

    write    copies the weights into shared memory and computes their digest
    push     transfers the weights: a write, after which the sidecar computes the digest again, loads the
             weights and resets its prefix cache
    copy     copies the same number of bytes within this process, for comparison

The sidecar starts twice: the first start may include the compilation of Python files to bytecode, the second
does not.
"""

import argparse
import time

import jax
import numpy as np

from sea_jax.actors.sampler import new_version
from sea_jax.actors.vllm_sampler import VllmOptions, VllmSampler
from sea_jax.actors.weight_sync import SharedWeights
from sea_jax.models import LlamaConfig, PythiaConfig, convert, sizes
from sea_jax.runtime.mesh import make_mesh

PROMPT, RESPONSE = 512, 53  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", default=".venv-vllm/bin/python", help="Python of the sidecar's environment"
    )
    parser.add_argument("--model", default="pythia-160m", help=f"one of {sorted(sizes.SIZES)}")
    parser.add_argument("--pushes", type=int, default=7, help="timed pushes, after 1 untimed push")
    args = parser.parse_args()
    shape = sizes.shape(args.model, max_length=2048)
    assert isinstance(shape, PythiaConfig | LlamaConfig), (
        f"--model: {args.model!r} is not a policy; valid: a size of GPT-NeoX or Llama"
    )
    model = shape.build()
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    options = VllmOptions(args.python, PROMPT, "float32")
    for name in ("first", "second"):
        sampler = VllmSampler(model, RESPONSE, 0, 1, make_mesh(), options)
        start = time.perf_counter()
        sampler.start()
        print(f"{name} sidecar ready after {time.perf_counter() - start:.1f} s")
        if name == "first":
            sampler.close()

    memory, seconds = SharedWeights(), {"write": [], "push": [], "copy": []}
    source = np.concatenate([x.reshape(-1) for x in jax.tree.leaves(jax.tree.map(np.asarray, params))])
    target = np.zeros_like(source)
    for _ in range(args.pushes + 1):
        params = jax.block_until_ready(jax.tree.map(lambda x: x + 1e-3, params))
        policy, host = new_version(params), jax.tree.map(np.asarray, params)
        for what, call in (
            ("write", lambda host=host: memory.write(convert.hf_views(model, host))),
            ("push", lambda policy=policy: sampler.load(policy)),
            ("copy", lambda: np.copyto(target, source)),
        ):
            start = time.perf_counter()
            call()
            seconds[what].append(time.perf_counter() - start)
    sampler.close()
    print(
        f"{args.model}, {source.nbytes / 1e6:.0f} MB, {args.pushes} pushes; "
        "columns: lowest seconds, median seconds, GB/s at the median"
    )
    for what, all_ in seconds.items():
        low, median = np.min(all_[1:]), np.median(all_[1:])
        print(f"{what:>6}: {low:.3f} {median:.3f} {source.nbytes / 1e9 / median:6.2f}")


if __name__ == "__main__":
    main()
