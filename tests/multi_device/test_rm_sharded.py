"""A reward model trained on eight devices equals one device's."""

import json
import pathlib
import sys

import helpers
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MESHES = [dict(data=2, fsdp=2, tensor=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_training_on_a_mesh_equals_one_devices(mesh):
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    assert "8 devices agree" in helpers.in_own_process(__file__, json.dumps(mesh), devices=8)


def main(axes):
    import jax
    import numpy as np
    from helpers import rewarder
    from ml_collections import ConfigDict

    from sea_jax.experiment.reward_scorer import make_oracle
    from sea_jax.pretraining import rm
    from sea_jax.runtime.mesh import make_mesh
    from sea_jax.tasks.preferences import Pair

    assert jax.device_count() == 8
    model, params = rewarder("pythia", vocab_size=16, width=16, num_heads=2, mlp_width=16, max_length=64)
    rng = np.random.default_rng(0)
    word = lambda: "".join(rng.choice(list("abcdefghijklmnop"), rng.integers(1, 12)))  # noqa: E731
    pairs = [Pair(word(), word(), word()) for _ in range(64)]
    encode = lambda xs, ys: [[ord(c) - ord("a") for c in x + y] for x, y in zip(xs, ys, strict=True)]  # noqa: E731
    config = ConfigDict(dict(steps=4, batch_size=32, learning_rate=1e-3, micro_batch=16))
    trained, measured = [], []
    for mesh in (make_mesh(), make_mesh(**axes)):
        tokens = rm.tokenize_pairs(encode, pairs)
        after = rm.train(config, tokens, model, params, jax.random.key(0), mesh, progress=False)
        oracle = make_oracle(model, after, encode, 16, mesh)
        measured.append(oracle.probability(*zip(*pairs, strict=True)))
        trained.append(after)
    kernel = trained[1]["layers"]["up"]["kernel"]  # [2, 16, 16]
    parts = (2, 16 // axes.get("fsdp", 1), 16 // axes.get("tensor", 1))
    assert {s.data.shape for s in kernel.addressable_shards} == {parts}
    # A key's bias changes no attention and the last norm's no margin: the gradient is rounding, of which Adam
    # makes steps.
    for after in trained:
        bias = np.array(after["layers"]["qkv"]["bias"])  # [N, H, (query, key, value), D]
        bias[:, :, 1] = 0
        after["layers"]["qkv"]["bias"] = bias
        after["final_norm"].pop("bias")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *trained)
    np.testing.assert_allclose(*measured, rtol=1e-5, atol=1e-5)
    for part in ("up", "down", "qkv"):
        before, after = (tree["layers"][part]["kernel"] for tree in (params, trained[0]))
        assert np.abs(before - after).max() > 1e-3, part
    print("8 devices agree")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
