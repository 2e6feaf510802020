"""One learning step on eight devices equals one device's, under every way to split it."""

import dataclasses
import functools

import helpers
import jax
import numpy as np
import optax
import pytest

from launch import hlo
from sea_jax import algorithm
from sea_jax.ensemble.heads import Head
from sea_jax.ensemble.posterior import HeadEnsemble
from sea_jax.runtime.mesh import ensure_on_mesh, make_mesh, shard_batch
from sea_jax.runtime.sharding import shard_params, with_gather
from sea_jax.state import init_state
from sea_jax.types import PreferenceBatch

MESHES = [dict(data=8), dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2)]


@pytest.fixture(scope="module")
def printed():
    """One process compares all meshes: the number of devices is fixed when JAX starts."""
    return helpers.in_own_process(__file__, devices=8)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_update_on_a_mesh_equals_one_device(mesh, printed):
    assert f"{mesh} agrees" in printed


def main():
    assert jax.device_count() == 8
    # Widths that eight devices divide, two layers for the scan, and more tokens than a layer has columns: what
    # the devices should exchange is parameters.
    model, params = helpers.decoder(seed=0, vocab_size=16, width=16, num_heads=2, mlp_width=16, max_length=64)
    _, ref_params = helpers.decoder(seed=1, vocab_size=16, width=16, num_heads=2, mlp_width=16, max_length=64)
    lengths = np.random.default_rng(0).integers(1, 5, (64, 2))
    batch = helpers.preference_batch(
        lengths, prompt_lengths=[1, 2, 3, 4] * 16,
        weight=[1, 1, 1, 0] * 16, from_oracle=([True, False, True, True, True] * 13)[:64],
    )  # fmt: skip
    batch = PreferenceBatch(**batch)
    settings = algorithm.UpdateSettings(
        model=model, policy_optimizer=optax.adam(**helpers.STEP_ADAM), micro_batch=32,
        posterior=HeadEnsemble(Head((4,)), 3, optax.adam(1e-2), num_steps=3, batch_size=8),
    )  # fmt: skip
    draw = functools.partial(helpers.draw_ensemble, capacity=96, posterior=settings.posterior)
    init = lambda params: init_state(jax.random.key(0), params, settings.policy_optimizer, draw)  # noqa: E731
    one = update(settings, init(params), ref_params, batch)
    for axes in MESHES:
        mesh = make_mesh(**axes)
        sharded, ref = (shard_params(mesh, model, p) for p in (params, ref_params))
        inputs = ensure_on_mesh(mesh, init(sharded)), ref, shard_batch(mesh, batch)
        compile_ = functools.partial(compiled, settings, inputs)
        program = compile_(with_gather(mesh, model))
        traffic = hlo.collectives(program.as_text(), 8).total
        assert traffic > 0  # the devices share the work
        if axes == dict(fsdp=8):
            # Embedding, head and layers: of π_ref once, of θ forward and backward; gradients all-reduced as
            # XLA:CPU does. Each layer comes twice, for prompts and for responses; two micro-batches.
            whole = sum(x.nbytes for x in jax.tree.leaves(params))
            assert traffic < 2 * 2 * (3 + 2) * whole, (traffic, whole)
            assert hlo.collectives(compile_(model).as_text(), 8).total > traffic
        compare(one, inputs[0], program(*inputs), params, batch)
        print(axes, "agrees", traffic)


def compiled(settings, inputs, model):
    return update.lower(dataclasses.replace(settings, model=model), *inputs).compile()


def compare(one, before, many, params, batch):
    """Compares the update of one device with that of a mesh, whose state was `before`."""
    array = lambda x: np.asarray(jax.random.key_data(x) if x.dtype == many[0].key.dtype else x)  # noqa: E731
    paths = jax.tree_util.tree_flatten_with_path(one)[0]
    for (path, a), b in zip(paths, jax.tree.leaves(many), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-5, err_msg=name)
    for path, spec in (("params", "parameters"), ("opt_state", "moments")):
        trees = (getattr(x.policy, path) for x in (before, many[0]))
        kept = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), *trees)
        assert all(jax.tree.leaves(kept)), spec
    assert one[0].num_queries == many[0].num_queries == sum(batch.from_oracle & (batch.weight > 0))
    moved = np.abs(array(many[0].policy.params["head"]["kernel"]) - params["head"]["kernel"])
    assert moved.max() > 1e-3


update = jax.jit(algorithm.update, static_argnums=0)

if __name__ == "__main__":
    main()
