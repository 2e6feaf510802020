"""Our preference losses against TRL's own code, on random log-probs and on a tiny model.

TRL runs in environments of its own (`make test ARGS='-m trl'`), where trl_losses.py calls the methods that its trainers
call while they train. `pytest -s` prints the largest differences.

TRL removed XPO after 1.13.0, so that loss is compared with that version and all else with the one of our
benchmarks. TRL's conventions, where they differ from ours:

    DPOTrainer, ipo          takes log-ratios per token: our per_token=True
    OnlineDPOTrainer, ipo    sums them, as Eq. 11 and our default do
    CPOTrainer, simpo        simpo_gamma is β m: our margin_ratio is simpo_gamma / beta
    XPOTrainer               compares the policy's response with y_ref; we compare two of the policy's, and y_ref
                             stands apart. Here y_ref is one of the pair on both sides
    label smoothing          CPOTrainer has it (0 here) and DPOTrainer's 'robust' too; we have none
"""

import os
import pathlib
import subprocess

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.online_dpo_step import TRL
from launch import environments
from sea_jax.losses import dpo, ipo, simpo, slic
from sea_jax.losses.logprobs import sequence_logprobs
from sea_jax.methods.xpo import Optimism
from sea_jax.models import convert

pytestmark = pytest.mark.trl
WORKER = pathlib.Path(__file__).with_name("trl_losses.py")
# The last version with XPO, which imports requests without requiring it.
TRL_WITH_XPO = ["trl==1.13.0", "requests==2.34.2", *TRL[1:]]
N, T = 400, 16
BETA = 0.3  # of the model's test


def draw():
    """Random pairs with lengths 1 to T, each with its own β, margin and α. Padding holds numbers that must not count."""
    rng = np.random.default_rng(0)
    policy = -0.01 - rng.exponential(1.5, (N, 2, T))
    reference = -0.01 - np.abs(policy + 0.7 * rng.standard_normal((N, 2, T)))
    mask = np.arange(T) < rng.integers(1, T + 1, (N, 2, 1))
    draws = dict(
        policy=policy, reference=reference,
        beta=np.exp(rng.uniform(np.log(0.02), np.log(2), N)),
        simpo_beta=np.exp(rng.uniform(0, np.log(20), N)), simpo_gamma=rng.uniform(0, 5, N),
        alpha=np.exp(rng.uniform(np.log(5e-6), 0, N)),
    )  # fmt: skip
    draws = {name: array.astype(np.float32) for name, array in draws.items()}
    return draws | dict(mask=mask, y_ref=rng.integers(0, 2, N))


def simpo_with_gamma(policy, reference, lengths, draws):
    beta = draws["simpo_beta"]
    return simpo(policy, reference, lengths, beta=beta, margin_ratio=draws["simpo_gamma"] / beta)


def xpo(policy, reference, lengths, draws):
    y_ref = jnp.take_along_axis(policy, draws["y_ref"][:, None], axis=1)  # [N, 1], as a method gets them
    return dpo(policy, reference, lengths, beta=draws["beta"]) + Optimism(draws["alpha"]).loss(y_ref)


def with_beta(loss, **options):
    return lambda policy, reference, lengths, draws: loss(
        policy, reference, lengths, beta=draws["beta"], **options
    )


OURS = {
    "DPOTrainer sigmoid": with_beta(dpo),
    "DPOTrainer hinge": with_beta(slic),
    "DPOTrainer ipo": with_beta(ipo, per_token=True),
    "OnlineDPOTrainer sigmoid": with_beta(dpo),
    "OnlineDPOTrainer ipo": with_beta(ipo, per_token=False),
    "CPOTrainer simpo": simpo_with_gamma,
    "XPOTrainer sigmoid": xpo,
}


def run_trl(name, requirements, kind, folder, arrays, *models):
    """Runs trl_losses.py in an environment, which is made on first use; returns its answers."""
    np.savez(folder / f"{kind}.npz", **arrays)
    answers = folder / f"{kind}_answers.npz"
    python = environments.ensure(name, requirements)
    command = [python, "-I", WORKER, kind, folder / f"{kind}.npz", answers, *models]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(np.load(answers))


@pytest.fixture(scope="module")
def draws():
    return draw()


@pytest.fixture(scope="module")
def theirs(draws, tmp_path_factory):
    """TRL's losses [N] and their gradients by the policy's log-probs [N, 2, T], by name."""
    folder = tmp_path_factory.mktemp("trl")
    pairs = run_trl("trl", TRL, "pairs", folder, draws)
    return pairs | run_trl("trl_xpo", TRL_WITH_XPO, "xpo", folder, draws)


def assert_close(name, ours, trl):
    """Compares to 1e-5 of a value, or to 1e-5 where it is below 1, and prints the largest difference so measured."""
    ours, trl = np.asarray(ours, np.float64), np.asarray(trl, np.float64)
    difference = np.abs(ours - trl) / np.maximum(1, np.abs(trl))
    print(f"\n{name}: {difference.max():.1e}", end="")
    assert ours.shape == trl.shape and difference.max() <= 1e-5


@pytest.mark.parametrize("name", OURS)
def test_a_loss_and_its_gradient_equal_trls(name, draws, theirs):
    mask = draws["mask"]

    def losses(token_logps):
        policy, reference = (jnp.where(mask, x, 0).sum(-1) for x in (token_logps, draws["reference"]))
        values = OURS[name](policy, reference, mask.sum(-1), draws)
        return values.sum(), values

    gradient, values = jax.grad(losses, has_aux=True)(jnp.asarray(draws["policy"]))
    assert values.shape == (N,) and np.std(values) > 0.1
    assert_close(f"{name}, loss", values, theirs[name])
    assert_close(f"{name}, gradient", gradient, theirs[f"{name}/gradient"])


def test_both_sides_of_the_hinge_and_both_orders_of_y_ref_are_drawn(draws, theirs):
    assert 0.1 < np.mean(theirs["DPOTrainer hinge"] == 0) < 0.9
    assert 0.1 < np.mean(draws["y_ref"]) < 0.9


@pytest.fixture(scope="module")
def step():
    """A tiny policy and its reference, and prompts, responses and their masks, padded."""
    model, params, ref_params, batch = helpers.step_inputs()
    batch = {name: np.asarray(batch[name]) for name in ("prompts", "prompt_mask", "tokens", "mask")}
    return model, params, ref_params, batch


@pytest.fixture(scope="module")
def theirs_on_a_model(step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, params, ref_params, batch = step
    convert.save(folder / "policy", model, params)
    convert.save(folder / "reference", model, ref_params)
    batch = batch | dict(beta=BETA)
    return run_trl("trl", TRL, "model", folder, batch, folder / "policy", folder / "reference")


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_a_models_loss_and_gradient_equal_trls(name, step, theirs_on_a_model):
    """From token ids: TRL's DPOTrainer pads and masks them itself. The gradients are by all weights."""
    loss = OURS[f"DPOTrainer {name}"]
    model, params, ref_params, batch = step
    reference = sequence_logprobs(model, ref_params, **batch)

    def mean(params):
        policy = sequence_logprobs(model, params, **batch)
        return loss(policy, reference, batch["mask"].sum(-1), dict(beta=BETA)).mean()

    value, gradient = jax.value_and_grad(mean)(params)
    assert_close(f"model, {name}, loss", value, theirs_on_a_model[name])
    ours = convert.to_hf(model, jax.tree.map(np.asarray, gradient))
    ours["lm_head.weight"] = ours.pop("embed_out.weight")  # its name in memory
    answers = theirs_on_a_model.items()
    trl = {key.partition("/")[2]: value for key, value in answers if key.startswith(f"{name}/")}
    assert ours.keys() == trl.keys()
    flat = [np.concatenate([side[tensor].ravel() for tensor in sorted(trl)]) for side in (ours, trl)]
    assert_close(f"model, {name}, gradient", *flat)
