"""APL: prompts of high predictive entropy, and the pair with the widest margin in implicit reward (App. E)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEARNING, TINY, batch, chosen, decoder, full_logits, log_softmax
from small_run import loop, small_run

from configs import quickstart, tldr
from sea_jax import algorithm, train
from sea_jax.actors.sampler import sample_now
from sea_jax.losses import implicit_reward
from sea_jax.methods import apl
from sea_jax.models.generate import make_sampler
from sea_jax.state import sample_keys, step_keys
from sea_jax.types import PromptBatch

# --- line 3: prompts ------------------------------------------------------------------------------


def exact_entropy(tiny, prompts, mask, length, eos):
    """−Σ_y π(y|x) log π(y|x) over all responses of at most `length` tokens, an EOS ending one early."""
    V = tiny[0].config.vocab_size
    ys = np.array(list(itertools.product(range(V), repeat=length)), np.int32)
    ends = np.where((ys == eos).any(1), (ys == eos).argmax(1) + 1, length)
    kept = np.arange(length) < ends[:, None]
    once = [
        i for i, (y, n) in enumerate(zip(ys, ends, strict=True)) if not y[n:].any()
    ]  # one padding of each
    tokens = np.broadcast_to(ys[once], (len(prompts), len(once), length))
    logp = chosen(log_softmax(full_logits(tiny, prompts, mask, tokens)), tokens)
    logps = (logp * kept[once]).sum(-1)
    np.testing.assert_allclose(np.exp(logps).sum(-1), 1, rtol=1e-4)
    return -(np.exp(logps) * logps).sum(-1)


def test_the_estimate_is_the_entropy_by_enumeration(tiny):
    """All 111 responses of two tokens to three prompts; at another temperature it would be another number."""
    prompts, mask = batch((3, 1, 4), 4, "left", TINY["vocab_size"], seed=4)
    exact = exact_entropy(tiny, prompts, mask, 2, eos=5)
    assert np.ptp(exact) > 0.05
    found = {}
    for temperature in (1.0, 0.7):
        sample = make_sampler(tiny[0], 20_000, 2, temperature, 5, 0)
        out = sample(tiny[1], prompts, mask, jax.random.key(0))
        found[temperature] = np.asarray(apl.predictive_entropy(out.logprobs))
    error = 4 * exact / np.sqrt(20_000)  # a deviation of log π(y) is below its mean here
    assert (np.abs(found[1.0] - exact) < error).all() and (np.abs(found[0.7] - exact) > 3 * error).all()


def test_the_estimate_by_hand():
    """Sums over tokens, means over samples; padding is 0."""
    logprobs = jnp.array([[[-1.0, -2.0], [-3.0, 0.0]], [[-0.5, -0.5], [-0.25, -0.25]]])
    np.testing.assert_allclose(apl.predictive_entropy(logprobs), [3.0, 0.75])


def test_the_highest_are_kept_in_their_order():
    assert apl.highest(np.float32([1, 5, 3, 5, 0]), 2).tolist() == [1, 3]
    assert apl.highest(np.float32([7, 1, 9, 8]), 3).tolist() == [0, 2, 3]
    assert apl.highest(np.float32([2, 2, 2, 2]), 3).tolist() == [0, 1, 2]  # of equals the first
    values = np.random.default_rng(0).normal(size=100)
    kept = apl.highest(values, 17)
    assert values[kept].min() > np.delete(values, kept).max() and (np.diff(kept) > 0).all()


# --- line 5: implicit rewards -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs():
    """Four prompts with three responses each, and two policies."""
    V, lengths = TINY["vocab_size"], [4, 1, 2, 3, 3, 4, 1, 1, 4, 2, 2, 3]
    prompts, prompt_mask = batch((3, 4, 1, 2), 4, "left", V, seed=1)
    tokens, mask = (x.reshape(4, 3, 4) for x in batch(lengths, 4, "right", V, seed=2))
    return decoder(seed=0), decoder(seed=1), PromptBatch(prompts, prompt_mask), tokens, mask


@pytest.mark.parametrize("parts", [{}, dict(micro_batch=2), dict(micro_batch=1, token_chunk=3)], ids=str)
def test_implicit_rewards_by_hand(inputs, parts):
    """β Σ_t (log π_θ − log π_ref), each from logits of the whole sequence in one row."""
    theta, ref, prompts, tokens, mask = inputs
    settings = algorithm.UpdateSettings(model=theta[0], **LEARNING, **parts)
    found = jax.jit(apl.implicit_rewards, static_argnums=0)(settings, theta[1], ref[1], prompts, tokens, mask)
    logps = [
        (chosen(log_softmax(full_logits(p, prompts.tokens, prompts.mask, tokens)), tokens) * mask).sum(-1)
        for p in (theta, ref)
    ]
    beta = dict(LEARNING["dap_options"])["beta"]
    assert found.shape == (1, 4, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], beta * (logps[0] - logps[1]), atol=2e-5)
    np.testing.assert_allclose(implicit_reward(*logps, beta=0.25), 0.25 * (logps[0] - logps[1]))


def test_implicit_rewards_of_the_first_policy_are_all_0(inputs):
    """To the bit: then the widest pair is the first two, and a run begins as passive does."""
    theta, _, *rest = inputs
    settings = algorithm.UpdateSettings(model=theta[0], **LEARNING)
    assert not np.any(apl.implicit_rewards(settings, theta[1], theta[1], *rest))


# --- whole runs -----------------------------------------------------------------------------------


SIZES = {"apl.pool_factor": 2, "apl.entropy_samples": 3, "apl.num_responses": 6}


def watched(run, monkeypatch):
    """Each step's number, proposal, the policy that chose and sampled, the policy that scored, rewards and duel."""
    seen, start, score, ask = [], run.actor.start, train.score, train.ask_oracle
    kept = lambda policy: policy._replace(params=jax.tree.map(np.array, policy.params))  # noqa: E731

    def started(policy, step, key):
        proposal = start(policy, step, key)
        seen.append(dict(step=step, proposal=proposal, policy=kept(policy)))
        return proposal

    def scored(run, prompts, responses):
        candidates, rewards = score(run, prompts, responses)
        now = next(s for s in seen if s["proposal"].prompts is prompts)
        now |= dict(rewards=np.array(rewards), now=kept(run.policy), responses=responses)
        return candidates, rewards

    def asked(run, step, prompts, candidates, rewards, duel, texts):
        out = ask(run, step, prompts, candidates, rewards, duel, texts)
        next(s for s in seen if s["step"] == step).update(duel=jax.tree.map(np.array, duel), shown=out[1])
        return out

    run.actor.start = started
    monkeypatch.setattr(train, "score", scored)
    monkeypatch.setattr(train, "ask_oracle", asked)
    return seen


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_chooses_prompts_and_pairs_and_buys_every_label(tmp_path, monkeypatch, staleness):
    """Pools of eight, four kept: at each step the prompts that the policy of then is least sure of, the pair that
    the policy of now has farthest apart; the oracle labels all, and exactly the budget is spent."""
    run = small_run(
        tmp_path, "apl",
        **SIZES | {"train.learning_rate": 0.05, "train.query_budget": 14, "train.staleness": staleness},
    )  # fmt: skip
    asked, label = [], run.labeller.ask
    run.labeller.ask = lambda prompts, *rest, **kw: asked.append(len(prompts)) or label(prompts, *rest, **kw)
    seen = watched(run, monkeypatch)
    metrics, _ = loop(run)
    assert asked == [4, 4, 4, 2] and run.labeller.num_queries == int(run.state.num_queries) == 14
    assert run.state.experience is None and len(seen) == 4 + staleness
    prompts = run.assets.task.prompts["train"]
    every = [row for row in metrics if "prompt/entropy" in row]
    for step, found in enumerate(seen[:4]):
        rows = run.actor.rows[step]
        assert sorted(rows) == list(range(8))  # all of the task's
        tokens, mask = run.assets.task.encode_prompts([prompts[row] for row in rows])
        keys = sample_keys(step_keys(run.state.key, step).sample)
        samples = sample_now(
            run.assets.sampler, found["policy"], tokens, mask, keys.pool, num_responses=3, temperature=1.0
        )
        entropy = -np.asarray(samples.logprobs, np.float64).sum((1, 2)) / 3
        kept = sorted(range(8), key=lambda i: -entropy[i])[:4]
        assert found["proposal"].prompts.rows.tolist() == [rows[i] for i in sorted(kept)]
        np.testing.assert_allclose(every[step]["prompt/entropy"], entropy[kept].mean(), rtol=1e-5)
        np.testing.assert_allclose(every[step]["prompt/entropy_pool"], entropy.mean(), rtol=1e-5)

        responses, batch = found["responses"], found["proposal"].prompts.batch
        assert responses.tokens.shape[:2] == (4, 6)
        inputs = np.asarray(batch.tokens), np.asarray(batch.mask), np.asarray(responses.tokens)
        logps = [
            (
                chosen(log_softmax(full_logits((run.assets.model, p), *inputs)), inputs[2]) * responses.mask
            ).sum(-1)
            for p in (found["now"].params, run.assets.ref_params)
        ]
        rewards = run.config.train.beta * (logps[0] - logps[1])
        np.testing.assert_allclose(found["rewards"][0], rewards, atol=1e-4)
        margin = np.abs(rewards[:, :, None] - rewards[:, None])
        pair = margin[np.arange(4), found["duel"].first, found["duel"].second]
        np.testing.assert_allclose(pair, margin.max((1, 2)), atol=1e-4)
        assert (margin.max() > 0.02) == (step > 0) and found["duel"].query_oracle.sum() == asked[step]


def test_a_pool_of_one_batch_keeps_every_prompt(tmp_path, monkeypatch):
    """Factor 1: nothing is left out, whatever the entropies."""
    run = small_run(tmp_path, "apl", **SIZES | {"apl.pool_factor": 1, "train.query_budget": 8})
    seen = watched(run, monkeypatch)
    loop(run)
    for step, found in enumerate(seen):
        assert found["proposal"].prompts.rows.tolist() == list(run.actor.rows[step])
    assert len(seen) == 2 and run.labeller.num_queries == 8


def test_a_policy_that_only_repeats_itself_ends_the_run(tmp_path):
    """Equal responses are no duel; the pool's samples, at temperature 1, are none of it."""
    fields = SIZES | {"train.temperature": 1e-6, "train.max_idle_steps": 3}
    metrics, _ = loop(small_run(tmp_path, "apl", **fields))
    assert [row["duel/void"] for row in metrics if "duel/void" in row] == [1.0] * 3
    assert [row["queries"] for row in metrics if "eval/reward" in row] == [0, 0]


def test_the_papers_numbers():
    """1024 prompts a batch, 128 of them kept, 8 responses each (App. F.1)."""
    config = tldr.get_config("method=apl")
    assert config.methods == ("apl",) and config.train.batch_size == 128
    assert config.apl.pool_factor * config.train.batch_size == 1024 and config.apl.num_responses == 8
    assert quickstart.get_config().apl == config.apl
