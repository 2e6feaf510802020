"""Who computes where and when: responses written ahead of the learning, and on devices of their own."""

import pathlib
import tempfile
from itertools import pairwise

import helpers
import jax
import numpy as np
import pytest
from small_run import loop, small_run, watched

from sea_jax import train
from sea_jax.actors.make import sampler_for
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.state import step_keys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def finished(run):
    """The state after the whole run."""
    loop(run)
    return run.state


@pytest.mark.parametrize(("staleness", "ahead"), [(0, 0), (1, 0), (3, 0), (0, 1), (1, 2)])
def test_a_step_learns_from_the_policy_of_so_many_steps_before(tmp_path, monkeypatch, staleness, ahead):
    """Step t's responses are what θ_{max(t - s, 0)} writes under step t's own key, for step t's own prompts.

    The delay s is that of the responses and that of the questions together.
    """
    delays = {"train.staleness": staleness, "train.ask_ahead": ahead}
    run = small_run(tmp_path, "passive", **delays, **{"train.learning_rate": 0.05})
    staleness += ahead
    params = lambda: jax.tree.map(np.array, run.state.policy.params)  # noqa: E731
    learned, step = [params()], train.train_step  # θ_0, θ_1, …

    def watched_step(*args):
        record = step(*args)
        learned.append(params())
        return record

    monkeypatch.setattr(train, "train_step", watched_step)
    seen = watched(run)
    rows = [row for row in loop(run)[0] if "step/finite" in row]
    assert [row.get("duel/staleness", 0) for row in rows] == [min(t, staleness) for t in range(4)]
    assert len(learned) == 5 and len(seen) == 4 + staleness  # four steps of four queries; the rest unread
    kernels = [each["head"]["kernel"] for each in learned]
    assert not any(np.array_equal(a, b) for a, b in pairwise(kernels))
    for t in range(4):
        of = learned[max(t - staleness, 0)]
        jax.tree.map(np.testing.assert_array_equal, seen[t][0].params, of)
        prompts = run.actor.encode(run.actor.rows[t]).batch
        again = sample_now(
            sampler_for(run.config, run.assets.task, run.assets.model, run.assets.mesh),
            new_version(of), prompts.tokens, prompts.mask, step_keys(run.state.key, t).sample,
            num_responses=2, temperature=run.config.train.temperature,
        )  # fmt: skip
        np.testing.assert_array_equal(again.tokens, seen[t][1].tokens)


def test_what_a_sampler_says_it_waited_for_is_counted_once(tmp_path):
    """Its own stages, or the time until the responses are there."""
    run = small_run(tmp_path, "passive")
    watched(run)
    for own in ({"learn": 1.0, "sync": 2.0, "generate": 1000.0}, {}):
        run.actor.sampler.seconds = own
        run.actor.begin(run.policy, 0, run.state.key)
        waited = run.actor.read().seconds
        assert waited == own if own else waited.keys() == {"generate"} and 0 < waited["generate"] < 1000


def test_an_offline_run_learns_from_what_the_first_policy_writes(tmp_path):
    """π_ref's responses at every step, while the policy moves away from it; labels are bought all the same."""
    run = small_run(tmp_path, "offline", **{"train.learning_rate": 0.05})
    seen = watched(run)
    state = finished(run)
    assert len(seen) == 4 and int(state.num_queries) == 16
    ref = jax.tree.map(np.array, run.assets.ref_params)
    for policy, responses in seen:
        jax.tree.map(np.testing.assert_array_equal, policy.params, ref)
        assert np.asarray(responses.mask).any()
    assert not np.array_equal(state.policy.params["head"]["kernel"], ref["head"]["kernel"])


def test_a_stale_run_still_buys_every_label_of_its_budget(tmp_path):
    state = finished(
        small_run(tmp_path, "sea", **{"train.staleness": 2, "train.query_budget": 13, "sea.burn_in": 8})
    )
    assert int(state.num_queries) == int(state.experience.size) == 13


def test_devices_of_their_own_change_nothing_but_the_place():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    assert "agree" in helpers.in_own_process(__file__)


def main():
    """Collocated against split, in step and one step behind, each to the bit."""
    from sea_jax.errors import InputError
    from sea_jax.runtime.mesh import make_mesh

    make_mesh(data=2, extra=2)
    assert jax.device_count() == 4
    with pytest.raises(InputError, match=r"config.sampler.devices=3: valid is a product, and 3 more, of at "):
        make_mesh(data=2, extra=3)
    for method, staleness in (("sea", 0), ("sea", 1), ("apl", 1), ("xpo", 1)):
        states = []
        for devices in (0, 2):
            with tempfile.TemporaryDirectory() as folder:
                run = small_run(
                    pathlib.Path(folder), method,
                    **{"mesh.data": 2, "sampler.devices": devices, "train.staleness": staleness, "sea.burn_in": 4,
                       "apl.pool_factor": 2, "xpo.alpha": 1.0},
                )  # fmt: skip
                prompts = run.actor.encode(run.actor.rows[0]).batch
                pending = run.actor.start(run.policy, 0, step_keys(run.state.key, 0).sample)
                if devices:
                    held = {d for x in jax.tree.leaves(run.assets.sampler._copy.params) for d in x.devices()}
                    assert held == set(jax.devices()[2:4])
                home = set(jax.devices()[:2])
                assert all(x.devices() == home for x in (prompts.tokens, *pending.responses()))
                states.append(finished(run))
        parts = [(s.policy, s.ensemble, s.experience) for s in states]
        jax.tree.map(np.testing.assert_array_equal, *parts)
    print("agree")


if __name__ == "__main__":
    main()
