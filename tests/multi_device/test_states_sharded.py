"""The policy's hidden states on a mesh equal one device's, from parameters that stay sharded."""

import json
import pathlib
import sys
import tempfile

import helpers
import pytest

MESHES = [dict(data=4), dict(data=2, fsdp=2), dict(fsdp=2, tensor=2)]


@pytest.fixture(scope="module")
def printed():
    """One process compares all meshes: the number of devices is fixed when JAX starts."""
    return helpers.in_own_process(__file__, devices=4)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_states_on_a_mesh_equal_one_devices(mesh, printed):
    assert f"{json.dumps(mesh)} agrees" in printed


def features(folder, mesh, prepared_for=None):
    """Features of fixed responses; where no folder of another mesh is given, its own samples scale them."""
    import jax
    import numpy as np
    from small_run import small_run

    from sea_jax.models import Responses
    from sea_jax.pretraining.hidden_states import PolicyStates
    from sea_jax.runtime.mesh import shard_batch

    run = small_run(folder, "sea", **{f"mesh.{axis}": size for axis, size in mesh.items()})
    shared, config = run.assets, run.config
    config.backbone.update(kind="policy", num_prompts=8, num_responses=3, layer=1, width=6)
    config.sampler.micro_batch = 4
    folder = prepared_for or folder
    prepared = PolicyStates(
        config, folder, shared.task, shared.model, shared.ref_params, shared.mesh, "sft-1"
    )
    tokens = np.random.default_rng(0).integers(2, 400, (8, 3, 6))
    mask = np.arange(6) < np.random.default_rng(1).integers(1, 7, (8, 3, 1))
    batch = *shared.task.encode_prompts(shared.task.prompts["train"]), tokens, mask
    prompts, prompt_mask, tokens, mask = shard_batch(shared.mesh, batch)
    found = prepared.backbone((), prompts, prompt_mask, Responses(tokens, mask, tokens))
    kernel = prepared.backbone.params["decoder"]["layers"]["up"]["kernel"]  # [1, 16, 16]
    parts = (1, 16 // mesh.get("fsdp", 1), 16 // mesh.get("tensor", 1))
    assert {s.data.shape for s in kernel.addressable_shards} == {parts}
    return jax.device_get(found), len(list(folder.glob("states-*")))


def main():
    import numpy as np

    for mesh in MESHES:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as all_:
            one, all_ = pathlib.Path(one), pathlib.Path(all_)
            expected, _ = features(one, {})
            for prepared_for in (None, one):  # prepared on the mesh itself, and by one device
                found, num_prepared = features(all_, mesh, prepared_for)
                assert num_prepared == 1  # the same name, whatever the mesh
                np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)
            assert np.abs(expected).mean() > 0.1
        print(json.dumps(mesh), "agrees")


if __name__ == "__main__":
    main(*sys.argv[1:])
