"""Plans the memory, operations and traffic of a run on accelerators that this machine need not have.

    python -m launch.plan --config=configs/tldr.py:size=6.9b --topology=a100-40gb:8
    python -m launch.plan --config=configs/tldr.py:size=1b --topology=v5p:8,v5p:64,v5p:1024
    python -m launch.plan --config=configs/tldr.py:size=6.9b --topology=a100-40gb:8 --search
    python -m launch.plan --config=configs/tldr.py:size=1b --topology=h100:8 --device_price=2 --label_price=1

The command compiles the programs of a training step (train, generate, features; for APL also the pool of
prompts and the implicit rewards; for methods whose policy learns between labels also these updates) for the
topology. It prints the memory per device of the parameters, the optimizer state, the gradients and the
activations, whether they fit, the operations, and the bytes that the collectives move. It estimates the
device-hours of a run at a share of the peak (`--utilization`), and their price. `--search` proposes a mesh,
remat and micro-batches that fit. The shape of a model comes from its folder's config.json or from its name;
no weights are read.

The compilers take up gigabytes, so each has an environment of its own, made on first use.
"""

import os
import subprocess
import sys

from absl import app, flags
from ml_collections import config_flags

from launch import cost, environments, topology
from sea_jax.config.flags import fail, parse, read_config
from sea_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/tldr.py:size=6.9b.")
_TOPOLOGY = flags.DEFINE_list(
    "topology", None,
    f"Kind and number of devices, as a100-40gb:8, v5p:64 or v5p:4x4x4; several are compared. "
    f"Kinds: {', '.join(topology.DEVICES)}.", required=True,
)  # fmt: skip
_SEARCH = flags.DEFINE_bool("search", False, "Propose a mesh, remat and micro-batches that fit.")
cost.define_flags()

_EXTRAS = {"cuda": "cuda", "tpu": "tpu"}  # platform -> extra of pyproject.toml with its compiler


def main(argv: list[str]) -> None:
    """Checks the command and runs launch.planner in the environment that has the topology's compiler."""
    if len(argv) > 1:
        valid = (
            "--config, --config.<field>, --topology, --search, --utilization, --device_price, --label_price"
        )
        fail(f"unexpected argument {argv[1]!r}: valid are {valid}")
    read_config(_CONFIG)
    try:
        wanted = [topology.parse(text) for text in _TOPOLOGY.value]
        platforms = sorted({t.device.platform for t in wanted})
        if len(platforms) > 1:
            fail(f"--topology={','.join(_TOPOLOGY.value)}: valid are kinds of one compiler, not {platforms}")
        python = _python(platforms[0])
    except (InputError, RuntimeError) as error:
        fail(error)
    count = max(t.count for t in wanted)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(environments.ROOT)}
    if platforms[0] == "cpu":
        environment["JAX_NUM_CPU_DEVICES"] = str(count)
    if platforms[0] == "cuda":
        # XLA chooses Triton's matrix products by timing them; some cannot be compiled without a device.
        environment["XLA_FLAGS"] = "--xla_gpu_enable_triton_gemm=false"
    # libtpu requests these from the machine's metadata server, and waits if there is none.
    environment |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock protects chips, which plans do not use
    }
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    done = subprocess.run([python, "-m", "launch.planner", *sys.argv[1:]], env=environment, check=False)
    sys.exit(done.returncode)


def _python(platform: str) -> str:
    if platform == "cpu":
        return sys.executable
    return str(environments.ensure(f"plan-{platform}", environments.own_requirements(_EXTRAS[platform])))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
