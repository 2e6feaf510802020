"""The policy's hidden states as a backbone: what is prepared, when it is reused, and a prior on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_run import small_run

from sea_jax.errors import InputError
from sea_jax.experiment import assets
from sea_jax.models import Responses
from sea_jax.pretraining import hidden_states
from sea_jax.pretraining.backbone import features_of
from sea_jax.pretraining.hidden_states import PolicyStates

FIELDS = dict(kind="policy", num_prompts=6, num_responses=3, layer=1, pool="both", scaling="pca", width=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"), "sea", **{"sampler.micro_batch": 2})


def states(run, folder, params=None, policy="sft-1", **fields):
    config = ConfigDict(run.config.to_dict())
    config.backbone.update(FIELDS | fields)
    shared = run.assets
    params = params or shared.ref_params
    return PolicyStates(config, folder, shared.task, shared.model, params, shared.mesh, policy)


def test_features_of_the_samples_are_normalised(run, tmp_path):
    prepared = states(run, tmp_path)
    prompts, _, tokens, mask = prepared.samples
    assert len(prompts) == 6 and tokens.shape == (6, 3, 6)
    features = features_of(prepared.backbone, prepared.samples)
    assert features.shape == (6, 3, 5) and prepared.backbone.feature_width == 5
    np.testing.assert_allclose(features.mean((0, 1)), 0, atol=1e-5)
    variance = np.mean([np.cov(row, rowvar=False).trace() / 5 for row in features])
    np.testing.assert_allclose(variance, 1, rtol=1e-4)
    assert features.dtype == np.float32 and mask.any(-1).all()


def test_an_eos_does_not_count_unless_asked(run, tmp_path):
    eos = run.assets.task.eos_id
    prepared = {read: states(run, tmp_path, read_eos=read).backbone for read in (False, True)}
    assert {read: backbone.eos_id for read, backbone in prepared.items()} == {False: eos, True: -1}
    prompts, mask = run.assets.task.encode_prompts(run.assets.task.prompts["train"][:2])
    tokens = np.array([[[5, 6, eos, 0], [5, 6, 0, 0]]] * 2)
    responses = Responses(jnp.asarray(tokens), jnp.asarray([[[1, 1, 1, 0], [1, 1, 0, 0]]] * 2, bool), tokens)
    with_eos, without = np.asarray(prepared[False]((), prompts, mask, responses)).swapaxes(0, 1)
    np.testing.assert_allclose(with_eos, without, atol=1e-4)
    with_eos, without = np.asarray(prepared[True]((), prompts, mask, responses)).swapaxes(0, 1)
    assert np.abs(with_eos - without).max() > 0.1


def test_what_is_prepared_is_read_again(run, tmp_path, monkeypatch):
    """Under the same fields and policy only; another policy in the same folder has other states."""
    fitted = []
    real = hidden_states.fit_scaling
    monkeypatch.setattr(hidden_states, "fit_scaling", lambda *args: fitted.append(args) or real(*args))
    first = states(run, tmp_path).backbone
    again = states(run, tmp_path).backbone
    assert len(fitted) == 1
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    others = dict(seed=1, num_prompts=5, temperature=0.5, pool="last", layer=0, scaling="standard", width=4,
                  read_eos=True)  # fmt: skip
    for count, (name, value) in enumerate(others.items(), start=2):
        assert states(run, tmp_path, **{name: value}).backbone is not None
        assert len(fitted) == count, name
    moved = jax.tree.map(lambda x: x + 0.01, run.assets.ref_params)
    assert states(run, tmp_path, params=moved, policy="sft-2").backbone is not None
    assert len(fitted) == len(others) + 2
    assert states(run, tmp_path, steps=7).recipe == states(run, tmp_path).recipe  # the ranker's own
    assert len(list(tmp_path.glob("states-*"))) == len(fitted)


def test_parts_are_prepared_before_a_run(run, tmp_path):
    """What `--prepare` makes is what a run reads, and the arrays of all layers are π_ref's own."""
    shared, config = run.assets, states(run, tmp_path, layer=-1).config
    made = [
        assets._backbone(
            config, tmp_path, shared.task, shared.model, shared.ref_params, shared.mesh, "sft-1"
        )[0]
        for config.ensemble.prior in ("random", "random")
    ]
    assert len(list(tmp_path.glob("states-*"))) == 1
    embedding = made[0].params["decoder"]["embed"]["embedding"]
    assert (
        embedding.unsafe_buffer_pointer() == shared.ref_params["embed"]["embedding"].unsafe_buffer_pointer()
    )


@pytest.mark.parametrize("fields", [dict(temperature=0.0), dict(layer=0, pool="last", temperature=0.0)])
def test_samples_without_a_difference(run, tmp_path, fields):
    """Greedy samples are equal, so no scale can be found."""
    with pytest.raises(InputError, match=r"config.backbone.layer=\d: the 3 samples of every prompt .* same"):
        states(run, tmp_path, **fields).backbone  # noqa: B018


def test_states_that_are_not_finite(run, tmp_path):
    params = jax.tree.map(jnp.asarray, run.assets.ref_params)
    params["layers"]["down"]["bias"] = params["layers"]["down"]["bias"] * jnp.nan
    prepared = states(run, tmp_path, params=params)
    prepared.__dict__["samples"] = states(run, tmp_path).samples
    with pytest.raises(FloatingPointError, match="not finite"):
        prepared.backbone  # noqa: B018


def test_priors_on_hidden_states(run, tmp_path):
    """Of a task with a family of rewards both kinds of prior are fitted to these features."""
    prepared = states(run, tmp_path, num_rewards=4)
    prepared.config.prior_heads.update(num_heads=4, steps=2, batch_size=4)
    linear, heads = prepared.prior("linear"), prepared.prior("mlp")
    assert linear["mean"].shape == (5,) and linear["precision"].shape == (5, 5)
    assert heads["hidden_0"]["kernel"].shape == (4, 5, 8)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((linear, heads)))
