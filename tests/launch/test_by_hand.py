"""The plan's figures equal hand calculations: ZeRO's bytes, and operations from the matrices' shapes."""

import sys

import helpers
import pytest

DEVICES = 8
PARAMS = {"1b": 1_011_781_632, "2.8b": 2_775_208_960, "6.9b": 6_857_302_016}  # Pythia's README


LARGE = [pytest.param(size, marks=pytest.mark.slow) for size in ("2.8b", "6.9b")]  # the same code as 1b


@pytest.mark.parametrize("case", ["1b", *LARGE, "traffic"])
def test_by_hand(case):
    """The check runs in a separate process, since JAX fixes the number of devices at its start."""
    helpers.in_own_process(__file__, case, devices=DEVICES)


def close(found, expected, share):
    print(f"{found:.6g}, by hand {expected:.6g}")
    assert abs(found - expected) <= share * expected, (found, expected)


def products(config, L, T, M):
    """Returns the multiply-adds of a prompt of L tokens with M responses of T tokens.

    The three numbers are those of a forward pass, of the recomputation by full remat, and of the head. A
    layer has 12 W² weights: 3 in queries, keys and values, 1 in the output of attention, 4 and 4 in the MLP.
    The prompt's last layer needs only keys and values. Remat repeats attention and all matrix products of a
    layer but the output products of attention and MLP.
    """
    N, W = config.num_layers, config.width
    tokens = (N - 1) * L + N * M * T
    attention = 2 * W * ((N - 1) * L * L + L + N * M * T * (L + T))
    forward = W * W * (12 * tokens + 3 * L + 9) + attention
    repeated = W * W * 7 * tokens + attention
    return forward, repeated, M * T * W * config.vocab_size


def check_size(size):
    import jax

    from configs import tldr
    from launch import flops, planner
    from launch.steps import Experiment, device_bytes

    config = planner.with_mesh(tldr.get_config(f"size={size}"), DEVICES)
    made, number = Experiment(config, jax.devices()), PARAMS[size]
    held = {name: device_bytes(tree) for name, tree in made.resident.items()}
    close(held["parameters"], 4 * number / DEVICES, 5e-3)
    close(held["optimizer"], 8 * number / DEVICES, 5e-3)
    close(held["reference"], 2 * number / DEVICES, 1e-2)  # norms and biases stay in f32
    close(held["oracle"], 2 * 7_504_928_768 / DEVICES, 1e-2)  # Skywork's safetensors
    close(held["backbone"], 2 * 434_012_160, 1e-2)  # DeBERTa-v3 large, replicated
    heads = 20 * (2048 * 128 + 128 * 128)  # K heads; each has φ, φ⁰ and two moments
    close(held["ensemble"], 65_536 * 2 * 2048 * 4 + 4 * 4 * heads, 1e-2)  # pairs in D_t

    shape, B, M = made.policy.config, 128, 20
    L, T = 512, 53
    forward, repeated, head = products(shape, L, T, 2)
    head *= 64 / T  # in chunks of 16 tokens
    # Reference: forward. Policy: forward, recomputation, and backward, which is twice forward.
    by_hand = 2 * B * (4 * forward + repeated + 5 * head)
    close(flops.count(made.step("train").traced.jaxpr), by_hand, 0.01)
    close(by_hand, 10 * number * B * (L + 2 * T), 0.25)  # the rule of thumb: 6 N, 2 for remat, 2 for π_ref

    step = made.step("generate")
    forward, _, head = products(shape, L, T - 1, M)
    close(flops.count(step.traced.jaxpr, step.while_turns), 2 * B * (forward + head), 0.01)


def check_traffic():
    """Checks an f32 policy of six layers, which are scanned: with ZeRO, each pass gathers its weights."""
    import jax

    from configs import quickstart
    from launch import hlo, planner
    from launch.steps import Experiment
    from sea_jax.tasks import mini_tldr

    config = quickstart.get_config()
    config.policy.update(dict(num_layers=6, width=64, mlp_width=256, remat="full"))
    config.train.batch_size = 16
    made = Experiment(planner.with_mesh(config, DEVICES), jax.devices())
    share = (DEVICES - 1) / DEVICES
    layers = 4 * 6 * (12 * 64 * 64 + 6 * 64)  # includes norms and the sharded biases
    ends = 4 * 2 * mini_tldr.VOCAB_SIZE * 64  # embedding and head
    train, generate = (
        hlo.collectives(made.step(name).traced.lower().compile().as_text(), DEVICES).sent
        for name in ("train", "generate")
    )
    close(generate["all-gather"], share * (layers + ends), 0.02)
    # Prompt and responses pass separately through the layers in π_ref, π_θ and the backward pass of π_θ,
    # which keeps the prompt's last layer.
    close(train["all-gather"], share * ((6 - 1 / 6) * layers + 2 * ends), 0.02)
    # XLA:CPU uses all-reduce instead of reduce-scatter, which sends twice as much, and each device sums the
    # gradients of the prompts' and the responses' embeddings locally.
    close(train["reduce-scatter"] + train["all-reduce"] / 2, share * (2 * layers + 1.5 * ends), 0.03)


if __name__ == "__main__":
    check_traffic() if sys.argv[1] == "traffic" else check_size(sys.argv[1])
