"""Tests reward-model oracles: batches and buckets change no number, and invalid inputs are refused.

A program is compiled for each model, batch size and bucket, and for each length of a bare sequence. So the tests
share models, the batch size 3 and the programs of bare sequences.
"""

import functools

import jax
import numpy as np
import pytest
from helpers import TINY_GATE, rewarder, sigmoid

from sea_jax.errors import InputError
from sea_jax.experiment.reward_scorer import make_oracle
from sea_jax.models import RewardConfig, RewardModel
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.labeller import Labeller
from sea_jax.oracles.reward_model import RewardModelOracle, bucket, padded
from sea_jax.runtime.mesh import make_mesh

CONTEXT = 64  # of the tiny models


def encode(prompts, responses):
    """Encodes each letter as one token: a is 0."""
    return [[ord(c) - ord("a") for c in p + r] for p, r in zip(prompts, responses, strict=True)]


def texts(lengths, seed=0):
    """Returns random prompts and responses; the two together have `lengths` letters."""
    rng = np.random.default_rng(seed)
    rows = ["".join(rng.choice(list("abcdefghijk"), n)) for n in lengths]
    cuts = [int(rng.integers(0, n)) for n in lengths]
    pairs = list(zip(rows, cuts, strict=True))
    return [row[:cut] for row, cut in pairs], [row[cut:] for row, cut in pairs]


def one_by_one(model, params, prompts, responses):
    """Returns the rewards of single sequences, without padding or batches."""
    apply = bare_program(model)
    rows = [np.array([row], np.int32) for row in encode(prompts, responses)]
    return np.array([apply({"params": params}, row)[0, 0] for row in rows])


@functools.cache
def bare_program(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module", params=["llama", "pythia"])
def tiny_reward(request):
    return rewarder(request.param, max_length=CONTEXT)


@pytest.fixture(scope="module")
def llama_reward():
    return rewarder("llama", max_length=CONTEXT)


LENGTHS = [1, 40, 16, 17, 64, 16, 5, 40, 64, 17]


def test_rewards_are_those_of_bare_sequences(tiny_reward):
    prompts, responses = texts(LENGTHS)
    expected = one_by_one(*tiny_reward, prompts, responses)
    assert expected.std() > 0.5
    rewards = make_oracle(*tiny_reward, encode, 3).rewards(prompts, responses)
    assert rewards.shape == (10,) and rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, expected, atol=2e-5)
    short = [i for i, length in enumerate(LENGTHS) if length <= 16]  # one bucket, for other batch sizes
    for batch_size in (1, 16):
        oracle = make_oracle(*tiny_reward, encode, batch_size)
        rewards = oracle.rewards([prompts[i] for i in short], [responses[i] for i in short])
        np.testing.assert_allclose(rewards, expected[short], atol=2e-5)


def test_the_scoring_function_sees_padded_batches_and_all_begin_before_any_is_awaited():
    """A stub model records the batches; the host waits only after it has dispatched all of them."""
    log = []

    def start(tokens, mask):
        log.append(tokens.shape)

        def wait():
            log.append("wait")
            return tokens.sum(1, where=mask).astype(np.float32)

        return wait

    oracle = RewardModelOracle(start, encode, batch_size=2, max_length=40, vocab_size=11)
    prompts, responses = texts(lengths := [3, 40, 5, 16, 17])
    found = oracle.rewards(prompts, responses)
    assert log == [(2, 40), (2, 32), (2, 16), (2, 16), *["wait"] * 4]
    np.testing.assert_array_equal(found, [sum(row) for row in encode(prompts, responses)])
    assert [len(row) for row in encode(prompts, responses)] == lengths
    tokens, mask = padded([[4, 5], [6]], 3, 16)
    assert tokens[:, :3].tolist() == [[4, 5, 0], [6, 0, 0], [4, 5, 0]] and mask.sum(1).tolist() == [2, 1, 2]


def test_neither_order_nor_company_matters(tiny_reward):
    prompts, responses = texts(LENGTHS)
    oracle = make_oracle(*tiny_reward, encode, 3)
    together = oracle.rewards(prompts, responses)
    order = np.random.default_rng(1).permutation(len(LENGTHS))
    mixed = oracle.rewards([prompts[i] for i in order], [responses[i] for i in order])
    alone = [oracle.rewards([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    np.testing.assert_allclose(mixed, together[order], atol=1e-6)
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_probabilities(llama_reward):
    """Probabilities are σ of the difference, 1/2 for a response against itself; labels agree with them."""
    prompts, first = texts([16, 17, 40, 40, 5])
    _, second = texts([17, 16, 16, 17, 40], seed=1)
    second[3] = first[3]
    oracle = make_oracle(*llama_reward, encode, 3)
    a, b = (one_by_one(*llama_reward, prompts, some) for some in (first, second))
    found = oracle.probability(prompts, first, second)
    assert isinstance(oracle, BradleyTerryOracle) and found.dtype == np.float64
    np.testing.assert_allclose(found, sigmoid(a - b), atol=1e-5)
    assert found[3] == 0.5 and np.abs(found - 0.5).max() > 0.2
    labels = Labeller(oracle).label(prompts, first, second, rng_seed=0).prefers_first
    decided = np.arange(5) != 3
    np.testing.assert_array_equal(labels[decided], (a > b)[decided])


def test_gated_rewards():
    """ArmoRM has the same interface; a text without its prompt's end has no reward."""
    model, params = rewarder("gated", max_length=CONTEXT)
    end = "".join(chr(ord("a") + token) for token in TINY_GATE["prompt_end"])
    prompts, responses = ["abc" + end, "ddk" + end, "a" * 30 + end], ["aab", "cad", end + "bad"]
    oracle = make_oracle(model, params, encode, 2)
    rewards = oracle.rewards(prompts, responses)
    np.testing.assert_allclose(rewards, one_by_one(model, params, prompts, responses), atol=1e-5)
    assert rewards.std() > 0.1
    with pytest.raises(
        FloatingPointError, match=r"text 1: reward nan \(1 in all .*lacks the tokens that end"
    ):
        oracle.rewards(["a" + end, "abc"], ["d", "d"])


def test_buckets():
    """Buckets are powers of two from 16 up to the context length."""
    lengths = [1, 15, 16, 17, 32, 33, 64, 65, 90]
    assert [bucket(n, 90) for n in lengths] == [16, 16, 16, 32, 32, 64, 64, 90, 90]
    assert bucket(3, 8) == 8


def test_one_program_a_bucket():
    """Over many calls, the model is traced once per bucket."""
    traced = []

    class Counted(RewardModel):
        def __call__(self, tokens, mask=None):
            traced.append(tokens.shape)
            return super().__call__(tokens, mask)

    model, params = rewarder("llama", max_length=CONTEXT)
    oracle = make_oracle(Counted(model.config), params, encode, 3)
    for seed in range(3):
        lengths = np.random.default_rng(seed).integers(1, CONTEXT + 1, 11)
        oracle.rewards(*texts(lengths, seed))
    assert sorted(traced) == [(3, 16), (3, 32), (3, 64)]


@pytest.mark.parametrize(("longest", "buckets"), [(0, [16, 32, 64]), (40, [16, 32, 40]), (9, [9])])
def test_everything_can_be_compiled_beforehand(longest, buckets):
    """After that, no text of any length needs another program."""
    traced = []

    class Counted(RewardModel):
        def __call__(self, tokens, mask=None):
            traced.append(tokens.shape)
            return super().__call__(tokens, mask)

    model, params = rewarder("llama", max_length=CONTEXT)
    oracle = make_oracle(Counted(model.config), params, encode, 3, longest=longest)
    assert oracle.compile() == buckets and traced == [(3, length) for length in buckets]
    rewards = oracle.rewards(*texts(range(1, (longest or CONTEXT) + 1)))
    assert len(traced) == len(buckets) and rewards.std() > 0.1
    if longest:
        with pytest.raises(InputError, match=f"text 0: {longest + 1} tokens; valid: 1 to {longest}"):
            oracle.rewards(*texts([longest + 1]))


def test_nothing_asked_is_nothing_answered(llama_reward):
    oracle = make_oracle(*llama_reward, encode, 3)
    assert oracle.rewards([], []).shape == (0,)
    assert oracle.probability([], [], []).shape == (0,)


def test_on_a_mesh_of_one(llama_reward):
    prompts, responses = texts([1, 16, 17, 5, 32])
    plain, shared = (
        make_oracle(*llama_reward, encode, 3, mesh).rewards(prompts, responses)
        for mesh in (None, make_mesh())
    )
    np.testing.assert_allclose(shared, plain, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a" * 65, r"text 1: 65 tokens; valid: 1 to 64, the reward model's context"),
        ("", r"text 1: 0 tokens; valid: 1 to 64"),
        ("abl", r"text 1: token 11; valid: 0 to 10, the reward model's vocabulary"),
        ("ab^", r"text 1: token -3; valid: 0 to 10"),
    ],
)
def test_texts_that_the_model_cannot_read(llama_reward, text, said):
    oracle = make_oracle(*llama_reward, encode, 3)
    with pytest.raises(InputError, match=said) as error:
        oracle.probability(["", ""], ["a", text], ["a", "a"])
    assert "\n" not in str(error.value)
    assert np.isfinite(oracle.rewards([""], ["a" * 64])).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_becomes_no_label(llama_reward, value):
    model, params = llama_reward
    spoilt = params | {"score": {"kernel": params["score"]["kernel"] * value}}
    labeller = Labeller(make_oracle(model, spoilt, encode, 3))
    with pytest.raises(FloatingPointError, match=r"text 0: reward -?(nan|inf) \(2 in all"):
        labeller.label(["a", "b"], ["c", "d"], ["e", "f"], rng_seed=0)
    assert labeller.num_queries == 0


def test_what_no_oracle_can_be_made_of(llama_reward):
    model, params = llama_reward
    with pytest.raises(InputError, match="batch_size=0; valid: a whole number of at least 1"):
        make_oracle(model, params, encode, 0)
    with pytest.raises(InputError, match="longest=65; valid: 1 to the model's context, 64"):
        make_oracle(model, params, encode, 2, longest=65)
    two = RewardConfig(model.config.trunk, num_labels=2).build()
    with pytest.raises(InputError, match="num_labels=2; valid: 1"):
        make_oracle(two, params, encode, 2)
    with pytest.raises(ValueError, match="encode: 1 token lists, must be one per text, 2"):
        make_oracle(model, params, lambda p, r: encode(p, r)[:1], 2).rewards(["a", "b"], ["c", "d"])
