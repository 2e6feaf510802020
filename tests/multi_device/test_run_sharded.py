"""Whole runs on a mesh: the devices share the prompts, and nothing that is drawn depends on their number."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", ["sea", "ceiling"])
def test_a_run_on_four_devices_equals_one_devices(method):
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    run = subprocess.run(
        [sys.executable, __file__, method], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "4 devices agree" in run.stdout


def main(method):
    import jax
    import numpy as np
    from small_run import small_run

    from sea_jax.errors import InputError
    from sea_jax.runtime.mesh import make_mesh, replicate, split
    from sea_jax.runtime.metrics import MetricWriter

    make_mesh(4)  # asks for four devices before JAX has any
    assert jax.device_count() == 4
    with pytest.raises(InputError, match=r"config.mesh.data=8: valid is 1 to 4, the cpu devices here"):
        make_mesh(8)
    runs = {}
    for data in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            run = small_run(pathlib.Path(folder), method, **{"mesh.data": data, "sea.burn_in": 4})
            prompts, _ = run._receive(0)
            key = jax.random.key(3)
            drawn = run.sample(run.state.policy.params, prompts.tokens, prompts.mask, key)
            assert {s.data.shape[0] for s in drawn.tokens.addressable_shards} == {4 // data}
            with MetricWriter(run.folder) as writer:
                run.loop(writer)
            metrics = (run.folder / "metrics.jsonl").read_text()
        runs[data] = drawn, run.state, metrics.count("\n")
    (drawn, one, rows), (drawn_by_four, four, rows_of_four) = runs[1], runs[4]
    np.testing.assert_array_equal(drawn.tokens, drawn_by_four.tokens)
    np.testing.assert_array_equal(drawn.mask, drawn_by_four.mask)
    np.testing.assert_allclose(drawn.logprobs, drawn_by_four.logprobs, atol=1e-5)
    assert rows == rows_of_four and int(one.step) == int(four.step)
    assert int(one.num_queries) == int(four.num_queries) == 16
    for part in ("policy", "ensemble", "experience"):
        paths = jax.tree_util.tree_flatten_with_path(getattr(one, part))[0]
        for (path, a), b in zip(paths, jax.tree.leaves(getattr(four, part)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    # What the devices cannot share they all hold.
    mesh = make_mesh(4)
    odd, whole = split(mesh, np.ones((6, 2))), replicate(mesh, np.ones((4, 2)))
    assert odd.sharding.is_fully_replicated and whole.sharding.is_fully_replicated
    print(jax.device_count(), "devices agree")


if __name__ == "__main__":
    main(sys.argv[1])
