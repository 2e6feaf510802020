"""Tests the client of the oracle service with a small server that fails as real servers do."""

import threading
import time

import numpy as np
import pytest
from helpers import sigmoid
from services import Http, free_port, oracle_http

from sea_jax.errors import InputError, ServiceError
from sea_jax.oracles import messages
from sea_jax.oracles.labeller import Labeller
from sea_jax.oracles.remote import RemoteOracle, RequestLimits

pytestmark = pytest.mark.usefixtures("quick_retries")

QUICK = RequestLimits(timeout_s=0.5, patience_s=3.0, attempts=3, in_flight=4, request_size=3)


def texts(size, seed=0):
    lengths = np.random.default_rng(seed).integers(0, 9, (2, size))
    return [f"x{i}" for i in range(size)], *(["a" * n for n in row] for row in lengths), lengths


def assert_right(oracle, size=50):
    prompts, first, second, lengths = texts(size)
    found = oracle.probability(prompts, first, second)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, sigmoid(lengths[0] - lengths[1]), rtol=1e-12)
    rewards = oracle.rewards(prompts, first)
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, lengths[0])


def test_order_is_kept_whatever_is_answered_first():
    """Requests end in a random order; the request size divides some batches and not others."""
    rng = np.random.default_rng(0)

    def late(request, good):
        time.sleep(rng.uniform(0, 0.02))
        return good

    with oracle_http(late) as server:
        for size in (1, 2, 3, 50):
            oracle = RemoteOracle(server.url, limits=QUICK)
            assert_right(oracle, size)
            assert oracle.metrics() == {"oracle/requests": 2 * -(-size // 3), "oracle/retries": 0}
        assert RemoteOracle(server.url).probability([], [], []).shape == (0,)


def test_no_more_than_the_limit_are_in_flight():
    lock, now, most = threading.Lock(), [0], [0]

    def counted(request, good):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return good

    with oracle_http(counted) as server:
        assert_right(RemoteOracle(server.url, limits=QUICK), 90)
    assert most[0] == QUICK.in_flight


def sometimes(spoilt, every=5):
    """Spoils the first answer to every fifth request; a repeated request gets a correct answer."""
    lock, seen = threading.Lock(), set()

    def spoil(request, good):
        with lock:
            bad = request.id not in seen and len(seen) % every == every - 1
            seen.add(request.id)
        return spoilt(request, good) if bad else good

    return spoil


def changed(**fields):
    return lambda request, good: messages.pack_answer(request.id, **fields)


FAULTS = {
    "garbage": lambda request, good: b"<html>Bad gateway</html>",
    "half an answer": lambda request, good: good[:-3],
    "nothing": lambda request, good: b"",
    "another's answer": lambda request, good: messages.pack_answer("other", **{request.endpoint: [0.5] * len(request.texts[0])}),
    "NaN": lambda request, good: messages.pack_answer(request.id, **{request.endpoint: [np.nan] * len(request.texts[0])}),
    "infinity": lambda request, good: messages.pack_answer(request.id, **{request.endpoint: [np.inf] * len(request.texts[0])}),
    "one too few": lambda request, good: messages.pack_answer(request.id, **{request.endpoint: [0.5] * (len(request.texts[0]) - 1)}),
    "words": changed(probability="yes", rewards=["good"]),
    "status 500": lambda request, good: (500, {}, b"inference internal error"),
    "status 503": lambda request, good: (503, {}, b"gracefully shutting down"),
    "status 429": lambda request, good: (429, {}, b"too many requests"),
    "status 408": lambda request, good: (408, {}, b"inference timeout"),
    "hung up": lambda request, good: None,
    "too late": lambda request, good: time.sleep(0.7) or good,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(fault):
    """Each number arrives once and is correct; a label counts once, however often its request is sent."""
    with oracle_http(sometimes(FAULTS[fault])) as server:
        oracle = RemoteOracle(server.url, limits=QUICK)
        assert_right(oracle)
        sent, retries = oracle.metrics().values()
        assert (sent, retries) == (34 + 6, 6) and sent == server.requests
        prompts, first, second, lengths = texts(40)
        labeller = Labeller(oracle)
        labels = labeller.label(prompts, first, second, 0)
        assert (
            labeller.num_queries == 40 and labels.answered.all() and oracle.metrics()["oracle/retries"] == 9
        )
        decided = lengths[0] != lengths[1]
        np.testing.assert_array_equal(labels.prefers_first[decided], (lengths[0] > lengths[1])[decided])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "garbage",
            r"3 malformed replies; the last: 24 bytes that are not a msgpack map",
        ),
        ("NaN", r"probability\[0\] is nan"),
        ("infinity", r"probability\[0\] is inf"),
        ("one too few", r"2 numbers, must be 3"),
        ("words", r"no list of numbers 'probability'"),
        ("another's answer", r"an answer to 'other', not to"),
        ("status 500", r"3 malformed replies; the last: status 500: 'inference internal error'"),
        ("status 503", r"no answer within 0.6 s \(\d+ attempts; the last: status 503"),
        ("hung up", r"no answer within 0.6 s \(\d+ attempts; the last: RemoteProtocolError"),
        ("too late", r"no answer within 0.6 s \(\d+ attempts; the last: ReadTimeout"),
    ],
)
def test_a_fault_that_stays_is_told_within_the_bound_and_buys_nothing(fault, said):
    with oracle_http(FAULTS[fault]) as server:
        labeller = Labeller(RemoteOracle(server.url, limits=RequestLimits(0.5, 0.6, 3, 4, 3)))
        start = time.monotonic()
        with pytest.raises(ServiceError, match=said) as error:
            labeller.label(*texts(6)[:3], 0)
        assert time.monotonic() - start < 10
    assert f"oracle service {server.url}/probability: " in str(error.value) and "\n" not in str(error.value)
    assert labeller.num_queries == 0


def test_an_outage_within_the_patience_is_waited_out():
    """The server stops during 120 comparisons and restarts at the same port."""
    port = free_port()
    prompts, first, second, lengths = texts(120)
    found = {}

    def slowly(request, good):
        time.sleep(0.02)
        return good

    oracle = RemoteOracle(f"http://127.0.0.1:{port}", limits=RequestLimits(0.5, 20.0, 3, 4, 3))
    asking = threading.Thread(target=lambda: found.update(p=oracle.probability(prompts, first, second)))
    with oracle_http(slowly, port) as before:
        asking.start()
        while before.requests < 12:
            time.sleep(0.005)
    time.sleep(0.3)
    assert asking.is_alive()
    with oracle_http(slowly, port) as after:
        asking.join(10)
    assert after.requests >= 20 and oracle.metrics()["oracle/retries"] >= 4
    np.testing.assert_allclose(found["p"], sigmoid(lengths[0] - lengths[1]), rtol=1e-12)


def test_nobody_there():
    oracle = RemoteOracle(f"http://127.0.0.1:{free_port()}", limits=RequestLimits(0.5, 0.6, 3, 4, 3))
    start = time.monotonic()
    with pytest.raises(
        ServiceError, match=r"/about: no answer within 0.6 s \(\d+ attempts; the last: ConnectError"
    ):
        oracle.check()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("input", InputError, "/probability: text 3: 600 tokens; valid: 1 to 512$"),
        ("model", ServiceError, "/probability: text 3"),
        ("token", ServiceError, "; set SEA_JAX_ORACLE_TOKEN to the service's"),
    ],
)
def test_a_refusal_is_told_at_once(kind, error, said):
    refuse = changed(error="text 3: 600 tokens; valid: 1 to 512", kind=kind)
    with oracle_http(refuse) as server:
        with pytest.raises(error, match=said):
            RemoteOracle(server.url, limits=QUICK).probability(*texts(2)[:3])
        assert server.requests == 1


def test_another_service_at_that_address():
    with (
        Http(lambda *_: (404, {}, b"not found")) as server,
        pytest.raises(ServiceError, match="/about: status 404: 'not found'"),
    ):
        RemoteOracle(server.url, limits=QUICK).check()


def test_what_is_sent():
    """Every request contains the seed and the token; the texts are unchanged."""
    seen = []
    with oracle_http(lambda request, good: seen.append(request) or good) as server:
        oracle = RemoteOracle(server.url + "/", 7, QUICK, token="secret")
        oracle.probability(["é\0 {x}", "b"], ["", "\n"], ["c", "𝕏"])
        assert oracle.about() == dict(model="length", pid=1)
    assert seen[0][1:] == ("secret", "probability", 7, (["é\0 {x}", "b"], ["", "\n"], ["c", "𝕏"]))
    assert seen[1][1:4] == ("secret", "about", 7) and seen[0].id != seen[1].id


def test_texts_must_be_equally_many():
    with pytest.raises(ValueError, match="second: 1 given, must be one per prompt, 2"):
        RemoteOracle("http://127.0.0.1:1").probability(["a", "b"], ["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not a msgpack map"),
        (b"\x93\x01\x02\x03", "not a msgpack map"),
        (messages.msgpack.packb(dict(version=1)), "version=1; valid: 2"),
        (messages.msgpack.packb(dict(version=2, endpoint="obey")), "endpoint='obey'; valid: one of"),
        (messages.msgpack.packb(dict(version=2, endpoint=["rewards"])), r"endpoint=\['rewards'\]"),
        (messages.msgpack.packb(dict(version=2, endpoint="about", seed=-1)), "seed=-1"),
        (messages.msgpack.packb(dict(version=2, endpoint="rewards", prompts=["a"], responses="a")), "responses: valid is a list"),
        (messages.msgpack.packb(dict(version=2, endpoint="rewards", prompts=[1], responses=["a"])), "prompts: valid is a list"),
        (messages.msgpack.packb(dict(version=2, endpoint="rewards", prompts=["a"], responses=[])), "responses: 0 texts; valid: as many"),
        (messages.msgpack.packb(dict(version=2, endpoint="rewards", prompts=["a"] * 5000, responses=["a"] * 5000)), "at most 4096"),
    ],
)  # fmt: skip
def test_what_is_no_request(body, said):
    with pytest.raises(messages.RefusedError, match=said):
        messages.read_request(body)
