"""Shared by all tests: where modules are found, XLA's compile cache, and one tiny model.

Tests run on the CPU unless JAX_PLATFORMS says otherwise. On a GPU (JAX_PLATFORMS=cuda) they compute f32 products
in f32, not TF32, and without atomic additions, whose order changes from call to call.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compiling, and what it computes is small. Of processes that tests start, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sea_jax.runtime.process import fast_compile_flag  # noqa: E402

# Compiling takes a third of the time.
FAST_COMPILE = f"{fast_compile_flag()} --xla_cpu_parallel_codegen_split_count=1"
ON_GPU = "cuda" in os.environ["JAX_PLATFORMS"]
DETERMINISTIC = "--xla_gpu_deterministic_ops=true" if ON_GPU else ""
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE} {DETERMINISTIC}".strip()
if ON_GPU:
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import helpers  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from sea_jax.algorithm import UpdateSettings  # noqa: E402
from sea_jax.state import init_state  # noqa: E402
from sea_jax.types import PreferenceBatch  # noqa: E402

CACHE = ROOT / ".cache" / "jax"
# Beside those of multi_device, the files that take minutes.
LONG = ("test_composition.py", "test_finetune.py", "test_plan.py", "test_function.py")
LEFT_OUT = pytest.StashKey[list[str]]()
APART = {
    "sidecar": "the vLLM sidecar left out: make test-sidecar runs them",
    "browser": "the page in a browser left out: make test ARGS='-m browser' runs them, after `apt install "
    "chromium chromium-driver`",
    "labelling": "labelling tools left out: make test ARGS='-m labelling' runs them, after it has made .peers/labelling",
    "xmanager": "XManager left out: make test ARGS='-m xmanager' runs them, after it has made .peers/xmanager",
    "trl": "TRL left out: make test ARGS='-m trl' runs them, after it has made .peers/trl and .peers/trl_xpo",
    "alpaca_eval": "AlpacaEval's package left out: make test ARGS='-m alpaca_eval' runs them, after it has made "
    ".peers/alpaca_eval",
}
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs hold memory maps, of which Linux gives a process 65,530: the whole suite needs more."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny():
    """A two-layer decoder of 11 tokens and its random parameters, biases included."""
    return helpers.decoder()


@pytest.fixture(scope="session")
def step():
    """Model, state, π_ref and batch of the step that torch also computed."""
    model, params, ref_params, batch = helpers.step_inputs()
    init = lambda params: init_state(  # noqa: E731
        jax.random.key(2), params, helpers.LEARNING["policy_optimizer"], helpers.draw_ensemble
    )
    state = jax.tree.map(np.asarray, jax.jit(init)(params)._replace(key=None))
    state = state._replace(key=jax.random.key(4), num_queries=np.int32(7), step=np.int32(3))
    return model, state, ref_params, PreferenceBatch(**batch)


@pytest.fixture(scope="session")
def stepped(step):
    """Its settings, and the state and metrics after it."""
    model, state, ref_params, batch = step
    settings = UpdateSettings(model=model, **helpers.LEARNING)
    return settings, helpers.update(settings=settings, state=state, ref_params=ref_params, batch=batch)


def pytest_collection_modifyitems(config, items):
    """Tests that need an environment of their own are left out unless asked for, and that is said.

    The longest files come first, so that at the end no process works alone on one of them.
    """
    items.sort(key=lambda item: item.path.parent.name != "multi_device" and item.path.name not in LONG)
    for name in APART.keys() - {name for name in APART if name in config.option.markexpr}:
        left_out = [item for item in items if item.get_closest_marker(name)]
        if left_out:
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)
            config.stash.setdefault(LEFT_OUT, []).append(f"{len(left_out)} tests of {APART[name]}")


def pytest_sessionfinish(session):
    """A worker process of pytest-xdist hands its list to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    left_out = getattr(node, "workeroutput", {}).get("left_out", [])
    node.config.stash.setdefault(LEFT_OUT, []).extend(left_out)


def pytest_terminal_summary(terminalreporter, config):
    for said in sorted(set(config.stash.get(LEFT_OUT, []))):
        terminalreporter.write_line(said)
