"""The policy's step against torch: transformers' forward, autograd, and Adam's first step by hand.

`python tests/parity/test_update_hf.py` prints the numbers that tests/test_algorithm.py holds.
"""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import helpers

from sea_jax.models import convert

torch = pytest.importorskip("torch")


def log_prob(theirs, prompt, response):
    """log π(y | x) of one pair, unpadded."""
    ids = torch.tensor(np.concatenate([prompt, response])[None], dtype=torch.long)
    logp = torch.log_softmax(theirs(ids).logits[0].double(), -1)
    return sum(logp[len(prompt) + t - 1, int(token)] for t, token in enumerate(response))


def torch_step():
    """Loss, gradient norm, and the weights after one step, under Hugging Face's names."""
    model, params, ref_params, batch = helpers.step_inputs()
    policy, reference = (helpers.to_transformers(model, p) for p in (params, ref_params))
    batch = {name: np.asarray(value) for name, value in batch.items()}
    losses = []
    for b in range(len(batch["prompts"])):
        prompt = batch["prompts"][b][batch["prompt_mask"][b]]
        ratios = []
        for i in range(2):
            response = batch["tokens"][b, i][batch["mask"][b, i]]
            with torch.no_grad():
                anchor = log_prob(reference, prompt, response)
            ratios.append(log_prob(policy, prompt, response) - anchor)
        losses.append(-torch.nn.functional.logsigmoid(helpers.STEP_BETA * (ratios[0] - ratios[1])))
    weight = torch.tensor(batch["weight"], dtype=torch.double)
    loss = (torch.stack(losses) * weight).sum() / weight.sum()
    loss.backward()
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in policy.parameters()))
    rate, eps = helpers.STEP_ADAM["learning_rate"], helpers.STEP_ADAM["eps"]
    with torch.no_grad():  # Adam's first step: m̂ = g, v̂ = g²
        for p in policy.parameters():
            p -= rate * p.grad / (p.grad.abs() + eps)
    weights = {name: value.numpy() for name, value in policy.state_dict().items()}
    if "lm_head.weight" in weights:
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    return loss.item(), norm.item(), weights


def test_policy_step_equals_torch(step, stepped):
    loss, norm, weights = torch_step()
    settings, (after, metrics) = stepped
    np.testing.assert_allclose(metrics["policy/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/grad_norm"], norm, rtol=1e-4)
    ours = convert.to_hf(settings.model, after.policy.params)
    before = convert.to_hf(settings.model, step[1].policy.params)
    assert set(ours) == set(weights)
    for name, array in ours.items():
        np.testing.assert_allclose(array, weights[name], atol=2e-5, err_msg=name)
        assert np.abs(array - before[name]).max() > 1e-3, name


if __name__ == "__main__":
    loss, norm, weights = torch_step()
    print(f"loss {loss:.6f}  grad_norm {norm:.6f}")
    for name in ("embed_out.weight", "gpt_neox.layers.0.mlp.dense_4h_to_h.bias",
                 "gpt_neox.layers.0.attention.query_key_value.weight"):  # fmt: skip
        print(name, [round(float(x), 6) for x in weights[name].ravel()[:3]])
