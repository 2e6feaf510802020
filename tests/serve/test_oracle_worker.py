"""Tests the answers of a worker of the oracle service, without HTTP."""

import numpy as np
import pytest
from services import comparisons

from sea_jax.oracles import messages
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.serve.oracle_worker import RequestHandler, Settings
from sea_jax.tasks import mini_tldr


def read(answer, id, ask, size):
    return messages.read_answer(answer, id, ask, size)


def test_many_requests_at_once_are_answered_as_each_alone():
    """Requests of all kinds, sizes and seeds get answers bit-identical to the in-process oracle's."""
    prompts, first, second = comparisons(12)
    requests, expected = [], []
    for i, (start, end) in enumerate([(0, 1), (1, 5), (5, 5), (5, 12)]):
        rows = slice(start, end)
        for seed in (0, 3):
            oracle = BradleyTerryOracle(mini_tldr.reward_fn(seed))
            texts = prompts[rows], first[rows], second[rows]
            requests.append(messages.pack_request(f"p{i}{seed}", "", "probability", seed, texts))
            expected.append((f"p{i}{seed}", "probability", oracle.probability(*texts)))
            requests.append(messages.pack_request(f"r{i}{seed}", "", "rewards", seed, texts[:2]))
            expected.append((f"r{i}{seed}", "rewards", oracle.rewards(*texts[:2])))
    order = np.random.default_rng(0).permutation(len(requests))
    handler = RequestHandler(Settings("mini_tldr"), "")
    together = handler.answers([requests[i] for i in order])
    for i, answer in zip(order, together, strict=True):
        assert answer == handler.answers([requests[i]])[0]
        id, ask, wanted = expected[i]
        np.testing.assert_array_equal(read(answer, id, ask, len(wanted)), wanted)


def test_what_one_request_spoils_is_told_to_that_one():
    """An invalid prompt or malformed bytes fail alone: the other requests in the batch get answers."""
    prompts, first, second = comparisons(3)
    good = messages.pack_request("good", "", "probability", 0, (prompts, first, second))
    bad = messages.pack_request("bad", "", "probability", 0, (["no post"], ["a"], ["b"]))
    answers = RequestHandler(Settings("mini_tldr"), "").answers([bad, good, b"garbage", good])
    for answer, said in ((answers[0], "no post"), (answers[2], "the body is not a msgpack map")):
        with pytest.raises(messages.RefusedError, match=said) as refusal:
            read(answer, "bad", "probability", 1)
        assert refusal.value.kind == "input"
    wanted = BradleyTerryOracle(mini_tldr.reward_fn(0)).probability(prompts, first, second)
    for answer in (answers[1], answers[3]):
        np.testing.assert_array_equal(read(answer, "good", "probability", 3), wanted)


def test_a_token_is_wanted_where_there_is_one():
    handler = RequestHandler(Settings("mini_tldr"), "the-right-token-é")
    for token, allowed in (("the-right-token-é", True), ("", False), ("another", False)):
        answer = handler.answers([messages.pack_request("i", token, "about", 0, ())])[0]
        if allowed:
            assert read(answer, "i", "about", 0)["model"] == "mini_tldr"
        else:
            with pytest.raises(messages.RefusedError, match="the token is not the service's"):
                read(answer, "i", "about", 0)


@pytest.mark.parametrize("ask", ["about", "rewards"])
def test_a_service_of_one_seed_refuses_another(ask):
    """An answer would let a run learn another run's preferences."""
    handler, texts = RequestHandler(Settings("mini_tldr:3"), ""), ([], []) if ask == "rewards" else ()
    read(handler.answers([messages.pack_request("i", "", ask, 3, texts)])[0], "i", ask, 0)
    with pytest.raises(messages.RefusedError, match="seed=4; valid: 3, as the service holds mini_tldr:3"):
        read(handler.answers([messages.pack_request("i", "", ask, 4, texts)])[0], "i", ask, 0)
