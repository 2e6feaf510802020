"""One learning step on eight devices, the batch split among them, equals one device's."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_update_on_a_mesh_equals_one_device():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    run = subprocess.run(
        [sys.executable, __file__],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "8 devices agree" in run.stdout


def main():
    import helpers
    import jax
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from sea_jax import algorithm
    from sea_jax.ensemble import Head
    from sea_jax.state import init_state
    from sea_jax.types import PreferenceBatch

    model, params, ref_params, _ = helpers.step_inputs()
    lengths = np.random.default_rng(0).integers(1, 5, (16, 2))
    batch = helpers.preference_batch(
        lengths, prompt_lengths=[1, 2, 3, 4] * 4,
        weight=[1, 1, 1, 0] * 4, from_oracle=[True, False, True, True, True] * 3 + [False],
    )  # fmt: skip
    batch = PreferenceBatch(**batch)
    learner = algorithm.Learner(
        model=model, policy_optimizer=optax.adam(**helpers.STEP_ADAM),
        ensemble_optimizer=optax.adam(1e-2), ensemble_steps=3, ensemble_batch=8,
    )  # fmt: skip
    init = lambda params: init_state(  # noqa: E731
        jax.random.key(0), params, learner.policy_optimizer, Head((4,)), learner.ensemble_optimizer,
        num_members=3, feature_width=3, capacity=24,
    )  # fmt: skip
    state = jax.jit(init)(params)
    step = jax.jit(lambda state, ref, batch: algorithm.update(
        learner=learner, state=state, ref_params=ref, batch=batch
    ))  # fmt: skip
    one = step(state, ref_params, batch)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    sharded = jax.device_put(batch, split)
    assert {s.data.shape[0] for s in sharded.tokens.addressable_shards} == {2}
    inputs = jax.device_put(state, whole), jax.device_put(ref_params, whole), sharded
    compiled = step.lower(*inputs).compile()
    assert "all-reduce" in compiled.as_text()  # the devices share the work
    many = compiled(*inputs)

    array = lambda x: np.asarray(jax.random.key_data(x) if x.dtype == state.key.dtype else x)  # noqa: E731
    paths = jax.tree_util.tree_flatten_with_path(one)[0]
    for (path, a), b in zip(paths, jax.tree.leaves(many), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-5, err_msg=name)
    assert one[0].num_queries == many[0].num_queries == sum(batch.from_oracle & (batch.weight > 0))
    moved = np.abs(array(many[0].policy.params["head"]["kernel"]) - params["head"]["kernel"])
    assert moved.max() > 1e-3
    print(jax.device_count(), "devices agree")


if __name__ == "__main__":
    main()
