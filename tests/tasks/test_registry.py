"""The table of tasks: a new embedded task is one file and one row, and its rewards reach the oracles."""

import jax
import numpy as np
import pytest

from configs import quickstart
from sea_jax import tasks
from sea_jax.config.task import is_text
from sea_jax.errors import InputError
from sea_jax.experiment import validate
from sea_jax.experiment.oracles import make_oracles
from sea_jax.oracles import messages
from sea_jax.serve.oracle_worker import RequestHandler, Settings
from sea_jax.tasks import mini_tldr
from sea_jax.tasks.batching import padded_batches


def basis(prompts, responses):
    return np.array([[len(x), len(y)] for x, y in zip(prompts, responses, strict=True)], np.float32)


def draw(seed):
    return np.array([0, seed], np.float32)


def reward_fn(seed):
    return lambda prompts, responses: (basis(prompts, responses) * draw(seed)).sum(-1)


@pytest.fixture
def lengths(monkeypatch):
    """A task that rewards long responses."""
    spec = tasks.TaskSpec(
        load=lambda config, cache: "the task", prompt_length=8, response_length=4, vocab_size=16,
        reward_fn=reward_fn, reward_family=tasks.RewardFamily(basis, draw),
    )  # fmt: skip
    monkeypatch.setitem(tasks.TASKS, "lengths", spec)
    config = quickstart.get_config()
    config.task.name = "lengths"
    return config


def test_an_embedded_task_of_ones_own(lengths, tmp_path):
    """It is loaded, passes the checks of a config, and its hidden rewards are the oracle's."""
    assert tasks.load(lengths, tmp_path) == "the task"
    assert not is_text(lengths)
    validate.validate_parts(lengths)
    oracle = make_oracles(lengths, jax.make_mesh((1,), ("data",)))(3)
    np.testing.assert_array_equal(oracle.rewards(["a", "b"], ["four", ""]), [12, 0])
    np.testing.assert_allclose(oracle.probability(["a"], ["yy"], ["y"]), 1 / (1 + np.exp(-3.0)))


@pytest.mark.parametrize("model", ["lengths", "lengths:3"])
def test_the_oracle_service_knows_it(lengths, model):
    body = messages.pack_request("i", "", "rewards", 3, (["a", "b"], ["four", ""]))
    (answer,) = RequestHandler(Settings(model), "").answers([body])
    np.testing.assert_array_equal(messages.read_answer(answer, "i", "rewards", 2), [12, 0])
    assert Settings("missing:3").embedded is None and Settings("tldr").embedded is None


def test_a_task_without_rewards_has_neither_their_oracle_nor_a_ranker(lengths, monkeypatch):
    spec = tasks.TASKS["lengths"]
    for field, name, valid in (
        ("reward_fn", "oracle.kind='task'", "reward_model"), ("reward_family", "backbone.kind='ranker'", "encoder"),
    ):  # fmt: skip
        poorer = {name: getattr(spec, name) for name in spec.__dataclass_fields__} | {field: None}
        monkeypatch.setitem(tasks.TASKS, "lengths", tasks.TaskSpec(**poorer))
        with pytest.raises(InputError, match=f"config.{name}: valid is one of .*{valid}"):
            validate.validate_parts(lengths)


def test_an_unknown_task(lengths, tmp_path):
    lengths.task.name = "cnn"
    with pytest.raises(InputError, match=r"config.task.name='cnn': valid is one of .*'mini_tldr'.*'lengths'"):
        tasks.load(lengths, tmp_path)


@pytest.mark.parametrize("name", ["mini_tldr", "mini_tldr_v2", "mini_tldr_v2_register"])
def test_rewards_of_a_family_are_those_of_its_seeds(name):
    """The miniatures', to rounding: a matrix product here, a sum there."""
    spec = tasks.TASKS[name]
    grammar = mini_tldr.grammar.V1 if name == "mini_tldr" else mini_tldr.grammar.V2
    posts = [grammar.make_post(mini_tldr.random.Random(i)) for i in range(3)]
    task_prompts = [post.text for post in posts]
    responses = ["", grammar.make_reference(mini_tldr.random.Random(0), posts[1].facts), "a dog."]
    found = spec.reward_family.rewards(task_prompts, responses, range(5, 9))
    assert found.shape == (3, 4) and found.dtype == np.float32
    for column, seed in enumerate(range(5, 9)):
        expected = spec.reward_fn(seed)(task_prompts, responses)
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_rows", "size", "rows", "sizes"),
    [
        (5, 2, [[0, 1], [2, 3], [4, 0]], [2, 2, 1]),
        (4, 2, [[0, 1], [2, 3]], [2, 2]),
        (2, 5, [[0, 1, 0, 1, 0]], [2]),
    ],
)
def test_a_last_batch_is_filled_up(num_rows, size, rows, sizes):
    batches = list(padded_batches(num_rows, size))
    assert [batch.rows.tolist() for batch in batches] == rows
    assert [batch.size for batch in batches] == sizes
    assert [batch.start for batch in batches] == list(range(0, num_rows, size))
