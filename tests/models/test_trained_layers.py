"""Training of the last layers only: the gradient is the whole model's on them, and zero below."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sea_jax.losses import sequence_logprobs
from sea_jax.models import LlamaConfig, PythiaConfig, RewardConfig

SHAPE = dict(vocab_size=40, num_layers=3, width=16, num_heads=2, mlp_width=24, max_length=16)
CONFIGS = {
    "pythia": PythiaConfig(**SHAPE),
    "llama_tied": LlamaConfig(**SHAPE, num_kv_heads=1, head_dim=8, rope_scaling=None),
    "llama_untied": LlamaConfig(**SHAPE, num_kv_heads=2, head_dim=8, rope_scaling=None, tied=False),
}


def check_gradient(model, partial, params, loss, trained: int) -> None:
    """Checks value and gradient of `loss(model, params)` with the last layers trained against all of them."""
    whole_loss, whole = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(params)
    part_loss, part = jax.jit(jax.value_and_grad(lambda p: loss(partial, p)))(params)
    np.testing.assert_allclose(part_loss, whole_loss, rtol=1e-5)
    part = flatten_dict(part, sep="/")
    for path, gradient in flatten_dict(whole, sep="/").items():
        expected = np.array(gradient)
        if path.startswith("layers/"):
            expected[:-trained] = 0
        elif not path.startswith(("final_norm/", "score/")):
            expected[:] = 0
        np.testing.assert_allclose(part[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)
    assert all(
        np.abs(part[path][-1]).max() > 0
        for path in part
        if path.startswith("layers/") and "k/bias" not in path
    )


@pytest.mark.parametrize("name, trained, remat", [
    ("pythia", 1, "none"), ("pythia", 3, "full"), ("llama_tied", 2, "none"), ("llama_untied", 1, "full"),
])  # fmt: skip
def test_gradient_of_responses(name, trained, remat):
    rng = np.random.default_rng(0)
    prompts, tokens = (jnp.asarray(rng.integers(1, 40, shape)) for shape in ((2, 5), (2, 3, 4)))
    prompt_mask = jnp.array([[False, False, True, True, True], [True] * 5])
    mask = jnp.arange(4) < jnp.array([[4, 2, 1], [3, 4, 4]])[..., None]
    model = CONFIGS[name].build()
    params = model.init(jax.random.key(0), prompts)["params"]
    partial = dataclasses.replace(CONFIGS[name], trained_layers=trained, remat=remat).build()

    def loss(model, params):
        return jnp.sin(sequence_logprobs(model, params, prompts, prompt_mask, tokens, mask)).sum()

    check_gradient(model, partial, params, loss, trained)


def test_gradient_of_a_reward_model():
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 40, (3, 6)))
    shape = CONFIGS["llama_tied"]
    model = RewardConfig(shape).build()
    params = model.init(jax.random.key(0), tokens)["params"]
    partial = RewardConfig(dataclasses.replace(shape, trained_layers=2)).build()
    check_gradient(model, partial, params, lambda m, p: m.apply({"params": p}, tokens).sum(), 2)


def test_backward_pass_skips_the_frozen_layers():
    """The products of a backward pass grow with the layers that learn, not with those below."""

    def flops(num_layers: int, trained: int) -> float:
        shape = dataclasses.replace(CONFIGS["llama_tied"], num_layers=num_layers, trained_layers=trained)
        model, tokens = shape.build(), jnp.ones((2, 8), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        loss = lambda p: model.apply({"params": p}, tokens).sum()  # noqa: E731
        count = lambda f: jax.jit(f).lower(params).compile().cost_analysis()["flops"]  # noqa: E731
        return count(jax.grad(loss)) - count(loss)

    # At most four layers are unrolled, so that the compiler counts each of them.
    assert flops(4, 1) < 1.2 * flops(2, 1)
    assert flops(4, 0) > 1.6 * flops(2, 0)
