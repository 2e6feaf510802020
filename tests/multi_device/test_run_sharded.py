"""Whole runs on meshes: the devices share prompts and parameters, and nothing that is drawn depends on that."""

import pathlib
import shutil
import sqlite3
import tempfile

import helpers
import pytest

MESHES = [dict(data=4), dict(fsdp=4), dict(data=2, fsdp=2, tensor=2)]


@pytest.fixture(scope="module")
def printed():
    """One process compares all meshes: the number of devices is fixed when JAX starts."""
    return helpers.in_own_process(__file__)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_run_on_a_mesh_equals_one_devices(mesh, printed):
    assert f"{mesh} agrees" in printed


def test_a_run_saved_on_eight_devices_goes_on_with_one_and_with_sixteen(printed):
    assert "one device agrees" in printed and "sixteen devices agree" in printed


def saved_run(folder, mesh, last_step=None):
    """Goes on with a run on a mesh; returns its state and its labels."""
    from small_run import go_on, small_run

    fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
    run = small_run(folder, "sea", **fields, **{"sea.burn_in": 8, "train.batch_size": 8})
    restored = go_on(run, last_step)
    with sqlite3.connect(folder / "labels.sqlite") as db:
        labels = db.execute(
            "SELECT step, prompt, first, second, prefers_first FROM duels ORDER BY id"
        ).fetchall()
    return run.state, labels, restored


def resume_elsewhere():
    """Saves on eight devices; one and sixteen go on from there."""
    import jax
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole, labels, _ = saved_run(folder / "whole", {})
        _, first, restored = saved_run(folder / "eight", dict(fsdp=4, tensor=2), 2)
        assert first == labels[: len(first)] and 0 < len(first) < len(labels) and not restored
        for said, mesh in (("one device agrees", {}), ("sixteen devices agree", dict(fsdp=8, tensor=2))):
            shutil.copytree(folder / "eight", folder / said)
            state, found, restored = saved_run(folder / said, mesh)
            assert restored and found == labels
            devices = state.policy.params["head"]["kernel"].sharding.device_set
            assert len(devices) == (16 if mesh else 1)
            for a, b in zip(jax.tree.leaves(whole.policy), jax.tree.leaves(state.policy), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
            print(said)


def one_run(mesh):
    """A short run of SEA: what its first step draws, its final state, its number of log rows."""
    import jax
    from small_run import loop, small_run

    from sea_jax.actors.sampler import sample_now

    with tempfile.TemporaryDirectory() as folder:
        fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
        run = small_run(pathlib.Path(folder), "sea", **fields, **{"sea.burn_in": 4})
        prompts = run.actor.encode(run.actor.rows[0]).batch
        drawn = sample_now(
            run.actor.sampler, run.policy, *prompts, jax.random.key(3), num_responses=5, temperature=0.7
        )
        before = jax.tree.map(lambda x: x.sharding, run.state.policy)
        loop(run)
        after = jax.tree.map(lambda x, s: s.is_equivalent_to(x.sharding, x.ndim), run.state.policy, before)
        assert all(jax.tree.leaves(after)), after  # of parameters and moments, through donated updates
        rows = (run.folder / "metrics.jsonl").read_text().count("\n")
    return drawn, run.state, rows


def main():
    import jax
    import numpy as np

    from sea_jax.errors import InputError
    from sea_jax.runtime.mesh import make_mesh, replicate, shard_batch

    made = make_mesh(fsdp=8, tensor=2)  # asks for the devices before JAX has any
    assert jax.device_count() == made.size == 16
    with pytest.raises(InputError, match=r"config.mesh.data=32.*1 to 16, the cpu devices here"):
        make_mesh(32)
    reference = one_run({})
    for mesh in MESHES:
        compare(reference, one_run(mesh), mesh)
        print(mesh, "agrees")
    resume_elsewhere()
    with pytest.raises(InputError, match=r"config.mesh.tensor=4: valid is a divisor of 2, an axis of"):
        one_run(dict(tensor=4))
    # What the devices cannot share they all hold.
    odd, whole = shard_batch(made, np.ones((9, 2))), replicate(made, np.ones((4, 2)))
    assert whole.sharding.is_fully_replicated and odd.sharding.is_fully_replicated


def compare(reference, result, mesh):
    """Compares what two runs drew and learned, and looks at the parts that each device holds."""
    import jax
    import numpy as np

    (drawn, one, rows), (drawn_by_all, all_, rows_of_all) = reference, result
    parts = mesh.get("data", 1) * mesh.get("fsdp", 1)
    assert {s.data.shape[0] for s in drawn_by_all.tokens.addressable_shards} == {4 // parts}
    np.testing.assert_array_equal(drawn.tokens, drawn_by_all.tokens)
    np.testing.assert_array_equal(drawn.mask, drawn_by_all.mask)
    np.testing.assert_allclose(drawn.logprobs, drawn_by_all.logprobs, atol=1e-5)
    kernel = all_.policy.params["layers"]["up"]["kernel"]  # [1, 16, 16]
    expected = (1, 16 // mesh.get("fsdp", 1), 16 // mesh.get("tensor", 1))
    assert {s.data.shape for s in kernel.addressable_shards} == {expected}
    assert rows == rows_of_all and int(one.step) == int(all_.step)
    assert int(one.num_queries) == int(all_.num_queries) == 16
    for part in ("policy", "ensemble", "experience"):
        paths = jax.tree_util.tree_flatten_with_path(getattr(one, part))[0]
        for (path, a), b in zip(paths, jax.tree.leaves(getattr(all_, part)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


if __name__ == "__main__":
    main()
