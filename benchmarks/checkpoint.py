"""Times checkpoints: what a save costs the run, how large it is, and how long restoring takes.

python -m benchmarks.checkpoint --parameters=2e6,1.35e8

A state is a policy of so many f32 parameters with Adam's two moments. "Held" is the time that `save` keeps the run;
the rest is written while the next steps run. Median of several saves; the first is left out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.runtime.checkpoint_folder import CheckpointFolder


def make_state(parameters: int) -> dict:
    """Returns matrices of a thousand columns, as many for the policy as for each moment."""
    rows = max(parameters // 16_000, 1)
    keys = jax.random.split(jax.random.key(0), 48).reshape(3, 16)
    names = ("params", "mu", "nu")
    return {
        name: [jax.random.normal(key, (rows, 1000)) for key in row]
        for name, row in zip(names, keys, strict=True)
    }


def measure(parameters: int, folder: Path, saves: int) -> dict[str, float]:
    state = jax.block_until_ready(make_state(parameters))
    held, written = [], []
    with CheckpointFolder(folder, 0, 2) as saved:
        for step in range(saves + 1):
            start = time.perf_counter()
            saved.save(step, {"observed": {}}, state=state)
            held.append(time.perf_counter() - start)
            saved.wait()
            written.append(time.perf_counter() - start)
            state = jax.block_until_ready(jax.tree.map(lambda x: x + jnp.float32(1), state))
    newest = max((int(place.name) for place in folder.iterdir() if place.name.isdigit()), default=0)
    size = sum(file.stat().st_size for file in (folder / str(newest)).rglob("*") if file.is_file())
    start = time.perf_counter()
    with CheckpointFolder(folder, 0, 2) as saved:
        found = saved.newest(state=state)
        assert found is not None
        jax.block_until_ready(found[1])
        restored = time.perf_counter() - start
    return dict(
        state=sum(x.nbytes for x in jax.tree.leaves(state)), size=size,
        held=statistics.median(held[1:]), written=statistics.median(written[1:]), restored=restored,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Times checkpoints.")
    parser.add_argument("--parameters", default="2e6", help="of the policy, separated by commas")
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    print("| parameters | state, MB | checkpoint, MB | held, s | written after, s | restored in, s |")
    print("|---|---|---|---|---|---|")
    for parameters in map(float, options.parameters.split(",")):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            found = measure(int(parameters), Path(folder), options.saves)
        sizes = np.array([found["state"], found["size"]]) / 1e6
        seconds = [f"{found[name]:.3f}" for name in ("held", "written", "restored")]
        print(f"| {parameters:.3g} | {sizes[0]:.1f} | {sizes[1]:.1f} | {' | '.join(seconds)} |", flush=True)


if __name__ == "__main__":
    main()
