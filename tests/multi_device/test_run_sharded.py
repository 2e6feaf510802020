"""Whole runs on meshes: the devices share prompts and parameters, and nothing that is drawn depends on that."""

import math
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


def one_run(folder, mesh, last_step=None):
    """Goes on with a run of SEA on a mesh, up to a step or to its end; what it draws and learns, and its labels."""
    import jax
    from small_run import go_on, small_run

    from sea_jax.actors.sampler import sample_now

    fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
    run = small_run(folder, "sea", **fields, **{"sea.burn_in": 8, "train.batch_size": 8})
    prompts = run.actor.encode(run.actor.rows[0]).batch
    drawn = sample_now(
        run.actor.sampler, run.policy, *prompts, jax.random.key(3), num_responses=5, temperature=0.7
    )
    before = jax.tree.map(lambda x: x.sharding, run.state.policy)
    restored = go_on(run, last_step)
    after = jax.tree.map(lambda x, s: s.is_equivalent_to(x.sharding, x.ndim), run.state.policy, before)
    assert all(jax.tree.leaves(after)), after  # of parameters and moments, through donated updates
    rows = (run.folder / "metrics.jsonl").read_text().count("\n")
    with sqlite3.connect(folder / "labels.sqlite") as db:
        labels = db.execute(
            "SELECT step, prompt, first, second, prefers_first FROM duels ORDER BY id"
        ).fetchall()
    return drawn, run.state, rows, labels, restored


def main():
    import jax
    import numpy as np

    from sea_jax.errors import InputError
    from sea_jax.runtime.mesh import make_mesh, replicate, shard_batch

    made = make_mesh(fsdp=8, tensor=2)  # asks for the devices before JAX has any
    assert jax.device_count() == made.size == 16
    with pytest.raises(InputError, match=r"config.mesh.data=32.*1 to 16, the cpu devices here"):
        make_mesh(32)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        reference = one_run(folder / "one", {})
        for mesh in MESHES[:-1]:
            compare(reference, one_run(folder / str(mesh), mesh), mesh)
            print(mesh, "agrees")
        resume_elsewhere(reference, folder)
        with pytest.raises(InputError, match=r"config.mesh.tensor=4: valid is a divisor of 2, an axis of"):
            one_run(folder / "odd", dict(tensor=4))
    # What the devices cannot share they all hold.
    odd, whole = shard_batch(made, np.ones((9, 2))), replicate(made, np.ones((4, 2)))
    assert whole.sharding.is_fully_replicated and odd.sharding.is_fully_replicated


def resume_elsewhere(reference, folder):
    """Saves on eight devices; these, one and sixteen go on from there."""
    eight, whole = MESHES[-1], reference[3]
    *_, first, restored = one_run(folder / "eight", eight, 1)
    assert first == whole[: len(first)] and 0 < len(first) < len(whole) and not restored
    on = {f"{eight} agrees": eight, "one device agrees": {}, "sixteen devices agree": dict(fsdp=8, tensor=2)}
    for said, mesh in on.items():
        shutil.copytree(folder / "eight", folder / said)
        result = one_run(folder / said, mesh)
        assert result[-1]
        devices = result[1].policy.params["head"]["kernel"].sharding.device_set
        assert len(devices) == math.prod(mesh.values())
        compare(reference, result, mesh)
        print(said)


def compare(reference, result, mesh):
    """Compares what two runs drew and learned, and looks at the parts that each device holds."""
    import jax
    import numpy as np

    (drawn, one, rows, labels, _), (drawn_by_all, all_, rows_of_all, labels_of_all, _) = reference, result
    parts = mesh.get("data", 1) * mesh.get("fsdp", 1)
    assert {s.data.shape[0] for s in drawn_by_all.tokens.addressable_shards} == {8 // parts}
    np.testing.assert_array_equal(drawn.tokens, drawn_by_all.tokens)
    np.testing.assert_array_equal(drawn.mask, drawn_by_all.mask)
    np.testing.assert_allclose(drawn.logprobs, drawn_by_all.logprobs, atol=1e-5)
    kernel = all_.policy.params["layers"]["up"]["kernel"]  # [1, 16, 16]
    expected = (1, 16 // mesh.get("fsdp", 1), 16 // mesh.get("tensor", 1))
    assert {s.data.shape for s in kernel.addressable_shards} == {expected}
    assert rows == rows_of_all and labels == labels_of_all and int(one.step) == int(all_.step)
    assert int(one.num_queries) == int(all_.num_queries) == 16
    for part in ("policy", "ensemble", "experience"):
        paths = jax.tree_util.tree_flatten_with_path(getattr(one, part))[0]
        for (path, a), b in zip(paths, jax.tree.leaves(getattr(all_, part)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


if __name__ == "__main__":
    main()
