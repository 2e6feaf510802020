"""Hidden states as features: against transformers' output_hidden_states, and their scaling against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch, decoder, llama

from sea_jax.ensemble import hidden_states
from sea_jax.ensemble.hidden_states import HiddenStates
from sea_jax.models import Responses, convert
from sea_jax.pretraining.hidden_states import fit_scaling
from sea_jax.runtime.mesh import make_mesh

LAYERS, EOS = 3, 7
LENGTHS = [[5, 2], [1, 4], [3, 0]]  # of responses; the last is empty


def data():
    """Prompts of several lengths and their responses, of which two end with the EOS, with noise in the padding."""
    prompts, prompt_mask = batch([3, 6, 1], 6, "left", 11)
    tokens, mask = batch(np.ravel(LENGTHS), 5, "right", 11, seed=1)
    tokens = np.where(mask & (tokens == EOS), 3, tokens)  # none but those below
    for row in (0, 2):  # the second is nothing but an EOS
        tokens[row, mask[row].sum() - 1] = EOS
    return prompts, prompt_mask, tokens.reshape(3, 2, 5), mask.reshape(3, 2, 5)


def features(tiny, layer, pool, eos_id=-1, micro_batch=0):
    """The states themselves: mean 0 and scale 1."""
    model, params = tiny
    lower, kept = hidden_states.truncate(make_mesh(), model, jax.tree.map(jnp.asarray, params), layer)
    width, _ = hidden_states.feature_widths(model.config.width, pool, "standard", 1)
    plain = {"decoder": kept, "mean": jnp.zeros(width), "scale": jnp.ones(width)}
    extractor = HiddenStates(lower, pool, plain, eos_id, micro_batch)
    assert extractor.feature_width == width
    prompts, prompt_mask, tokens, mask = data()
    return np.asarray(extractor((), prompts, prompt_mask, Responses(tokens, mask, tokens)))


def theirs(tiny, kind):
    """The model in transformers, with its final norm and without its head."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model, params = tiny
    names = dict(pythia="GPTNeoX", llama="Llama")
    config = getattr(transformers, f"{names[kind]}Config")(
        **model.config.to_hf(), attn_implementation="eager"
    )
    whole = getattr(transformers, f"{names[kind]}ForCausalLM")(config).eval()
    tensors = {name: torch.tensor(array) for name, array in convert.to_hf(model, params).items()}
    assert not whole.load_state_dict(tensors, strict=False).unexpected_keys or kind == "pythia"
    return whole.base_model


def by_transformers(base, layer, eos_id):
    """Of every response alone, without any padding: last and mean states, each [3, 2, W]."""
    import torch

    prompts, prompt_mask, tokens, mask = data()
    last, mean = [], []
    for b in range(3):
        for m in range(2):
            prompt, response = prompts[b][prompt_mask[b]], tokens[b, m][mask[b, m]]
            whole = torch.tensor(np.concatenate([prompt, response])[None], dtype=torch.long)
            with torch.no_grad():
                states = base(whole, output_hidden_states=True).hidden_states[layer][0].numpy()
            end = len(prompt) + int((response != eos_id).sum())
            last.append(states[end - 1])
            mean.append(states[len(prompt) : end].mean(0) if end > len(prompt) else states[end - 1])
    return np.stack(last).reshape(3, 2, -1), np.stack(mean).reshape(3, 2, -1)


@pytest.mark.parametrize("kind", ["pythia", "llama"])
def test_states_are_those_of_transformers(kind):
    """Every layer, from the embeddings to the final norm, with and without the EOS."""
    tiny = dict(pythia=decoder, llama=llama)[kind](num_layers=LAYERS)
    base = theirs(tiny, kind)
    for layer in range(LAYERS + 1):
        for eos_id in (-1, EOS):
            last, mean = by_transformers(base, layer, eos_id)
            expected = dict(last=last, mean=mean, both=np.concatenate([last, mean], -1))
            for pool, states in expected.items():
                found = features(tiny, layer, pool, eos_id)
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, states, atol=2e-5, err_msg=f"{layer} {pool} {eos_id}")


def test_only_the_lower_blocks_are_kept():
    model, params = llama(num_layers=LAYERS)
    params = jax.tree.map(jnp.asarray, params)
    for layer in range(LAYERS + 1):
        lower, kept = hidden_states.truncate(make_mesh(), model, params, layer)
        assert {len(x) for x in jax.tree.leaves(kept["layers"])} == {layer} and "head" not in kept
        assert lower.config.num_layers == layer and lower.norm_last == (layer == LAYERS)
    assert [hidden_states.middle(n, -1) for n in (1, 2, 3, 30)] == [1, 1, 2, 15]
    assert hidden_states.middle(30, 0) == 0


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8])
def test_passes_change_nothing(micro_batch):
    tiny = decoder(num_layers=LAYERS)
    expected = features(tiny, 2, "both", EOS)
    np.testing.assert_allclose(features(tiny, 2, "both", EOS, micro_batch), expected, atol=1e-5)


def random_states(N=40, M=3, E=5):
    """States with correlated coordinates of different scales, and a part that a prompt's responses share."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(N, M, E)) @ rng.normal(size=(E, E)) * [1, 10, 0.1, 1, 3]
    return (mixed + 100 * rng.normal(size=(N, 1, E)) + 7).astype(np.float32)


def scaled(states, fitted):
    features = (states - fitted["mean"]) * fitted["scale"]
    return features @ fitted["projection"] if "projection" in fitted else features


def within(x):
    """Unbiased covariance among the responses to one prompt."""
    return np.mean([np.cov(row, rowvar=False) for row in x.astype(np.float64)], 0)


def test_standardised_coordinates():
    states = random_states()
    found = scaled(states, fit_scaling(states, "standard", 2))
    np.testing.assert_allclose(found.mean((0, 1)), 0, atol=2e-3)  # of features up to 1,000
    np.testing.assert_allclose(np.diag(within(found)), 1, rtol=1e-4)
    mean, deviation = states.mean((0, 1)), np.sqrt(np.diag(within(states)))
    np.testing.assert_allclose(found, (states - mean) / deviation, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("width", [2, 5, 9])
def test_principal_components(width):
    """Those of largest variance among a prompt's responses, uncorrelated; 9 are more than there are."""
    states = random_states()
    fitted = fit_scaling(states, "pca", width)
    found, E = scaled(states, fitted), min(width, 5)
    assert found.shape[-1] == E == hidden_states.feature_widths(5, "last", "pca", width)[1]
    deviation = np.sqrt(np.diag(within(states)))
    values = np.linalg.eigvalsh(within(states) / np.outer(deviation, deviation))[::-1][:E]
    np.testing.assert_allclose(within(found), np.diag(values / values.mean()), atol=2e-3)
    np.testing.assert_allclose(found.mean((0, 1)), 0, atol=2e-3)


@pytest.mark.parametrize("scaling", ["standard", "pca"])
def test_a_coordinate_that_does_not_vary_is_left_out(scaling):
    states = random_states()
    states[..., 2] = states[:, :1, 2]  # the same for all responses to a prompt
    found = scaled(states, fit_scaling(states, scaling, 4))
    assert np.isfinite(found).all()
    covariance = within(found)
    np.testing.assert_allclose(np.trace(covariance) / len(covariance), 1, rtol=1e-4)
