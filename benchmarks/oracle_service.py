"""Measures the throughput and latency of the oracle service with and without batching, on one machine.

    python -m benchmarks.oracle_service
    python -m benchmarks.oracle_service --model=mini_tldr    # a cheap reward: shows the service's overhead

The model is a GPT-NeoX reward model of 2 layers and width 128 with random fp32 weights. Posts have 40-64
tokens and summaries 8-24, so padded texts have 64 or 128 tokens. Each request asks for one comparison (two
texts), and each client waits for the answer before it sends the next request. Both services have one worker.
The unbatched worker takes one request and scores its two texts in one forward pass; the batched worker takes
up to 32 requests and scores `--batch_size` texts per forward pass. The clients are coroutines of this
process, and the two services are measured alternately.
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sea_jax.oracles import messages
from sea_jax.tasks import mini_tldr
from sea_jax.tasks import mini_tldr_grammar as grammar

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="folder, or mini_tldr; default: the reward model above")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="seconds per measurement, after one untimed second"
    )
    parser.add_argument("--rounds", type=int, default=2, help="measurements per client count and mode")
    parser.add_argument("--batch_size", type=int, default=8, help="texts per forward pass when batched")
    parser.add_argument("--port", type=int, default=18400, help="first of the two consecutive ports")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or save_model(Path(folder))
        modes = {
            "unbatched": ["--max_batch=1", "--batch_size=2"],
            "batched": ["--max_batch=32", f"--batch_size={args.batch_size}"],
        }
        services = []
        try:
            for i, flags in enumerate(modes.values()):
                services.append(start(model, args.port + i, flags))
            print("| clients | mode | comparisons/s | p50, ms | p99, ms |\n|---|---|---|---|---|", flush=True)
            for count in CLIENTS:
                for _ in range(args.rounds):
                    for i, mode in enumerate(modes):
                        print_row(
                            count, mode, asyncio.run(load(args.port + i, count, args.seconds)), args.seconds
                        )
        finally:
            for service in services:
                service.terminate()
                service.wait(30)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mosec", "jax", "msgpack"))
    print(f"python {platform.python_version()}, {versions}, {os.cpu_count()} cores")


def save_model(folder: Path) -> str:
    """Saves the reward model described above with the tokenizer of mini_tldr, and returns its folder."""
    import jax
    import jax.numpy as jnp

    from sea_jax import models

    task = mini_tldr.load()
    trunk = models.PythiaConfig(
        vocab_size=task.tokenizer.get_vocab_size(), num_layers=2, width=128, num_heads=4, mlp_width=512,
        max_length=128,
    )  # fmt: skip
    model = models.RewardConfig(trunk, padding_idx=0).build()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    models.save(folder / "reward", model, params, task.tokenizer)
    return str(folder / "reward")


def start(model: str, port: int, flags: list[str]) -> subprocess.Popen:
    """Starts an oracle service, waits until it is ready and returns its process."""
    call = [
        sys.executable, "-m", "sea_jax.serve.oracle_service", f"--model={model}", f"--port={port}",
        "--workers=1", *flags,
    ]  # fmt: skip
    service = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in service.stdout or []:
        if " ready at " in line:
            return service
    raise RuntimeError(f"service on port {port}: exited with status {service.wait()} before it was ready")


def requests(number: int = 500) -> list[bytes]:
    """Returns `number` HTTP requests, each for one comparison of two noisy summaries."""
    rng, out = random.Random(0), []
    for i in range(number):
        post = grammar.make_post(rng)
        texts = [[post.text], *([grammar.make_demonstration(rng, post)[0]] for _ in range(2))]
        body = messages.pack_request(str(i), "", "probability", 0, texts)
        out.append(
            b"POST /probability HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
    return out


async def load(port: int, count: int, seconds: float) -> list[float]:
    """Sends requests from `count` clients for `seconds` and returns the latencies in seconds."""
    prepared, latencies = requests(), []
    begin = time.perf_counter() + 1.0  # the first second is untimed
    end = begin + seconds

    async def client(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(first, sys.maxsize):
            sent = time.perf_counter()
            writer.write(prepared[i % len(prepared)])
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            assert head.startswith(b"HTTP/1.1 200"), head
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            messages.read_answer(
                await asyncio.wait_for(reader.readexactly(size), 60), str(i % len(prepared)), "probability", 1
            )
            now = time.perf_counter()
            if now > end:
                break
            if now > begin:
                latencies.append(now - sent)
        writer.close()

    await asyncio.gather(*(client(i * 7) for i in range(count)))
    return latencies


def print_row(count: int, mode: str, latencies: list[float], seconds: float) -> None:
    """Prints one row of the Markdown table."""
    p50, p99 = 1000 * np.percentile(latencies, [50, 99])
    print(f"| {count} | {mode} | {len(latencies) / seconds:,.0f} | {p50:.1f} | {p99:.1f} |", flush=True)


if __name__ == "__main__":
    main()
