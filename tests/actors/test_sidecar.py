"""A sidecar dies, hangs, refuses or is stale: calls are repeated, errors reported, and every wait ends."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import helpers
import jax
import numpy as np
import pytest

from sea_jax.actors import vllm_sampler
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.actors.sidecar import Sidecar, SidecarError, SidecarLostError
from sea_jax.models.generate import BatchSlice
from sea_jax.runtime.mesh import make_mesh

STUB = pathlib.Path(__file__).with_name("stub_sidecar.py")
L, T, EOS, PAD = 6, 5, 3, 1


@contextlib.contextmanager
def stubs(monkeypatch):
    """Yields a function (fault of the stub, options) -> a VllmSampler that runs the stub instead of vLLM."""
    made = []

    def make(how="", **options):
        code = (
            f"import sys; sys.path[:0] = [{str(helpers.ROOT)!r}, {str(STUB.parent)!r}]; "
            f"import stub_sidecar; stub_sidecar.main({how!r}, *map(int, sys.argv[1:3]))"
        )
        monkeypatch.setattr(vllm_sampler, "_PROGRAM", code)
        fields = dict(python=sys.executable, prompt_length=L, dtype="float32", timeout=30.0) | options
        model, params = helpers.decoder()
        sampler = vllm_sampler.VllmSampler(
            model, T, EOS, PAD, make_mesh(), vllm_sampler.VllmOptions(**fields)
        )
        made.append(sampler)
        return sampler, new_version(params)

    try:
        yield make
    finally:
        for sampler in made:
            sampler.close()


@pytest.fixture
def make(monkeypatch):
    with stubs(monkeypatch) as make:
        yield make


@pytest.fixture(scope="module")
def well():
    """A sampler whose stub has no fault, and its policy; shared by the tests that do not break it."""
    with pytest.MonkeyPatch.context() as monkeypatch, stubs(monkeypatch) as make:
        sampler, policy = make()
        sampler.start()
        yield sampler, policy


def test_it_gets_no_key(make, monkeypatch):
    """Of the variables of the run, which it gets otherwise."""
    names = ("OPENAI_API_KEY", "SEA_JAX_ORACLE_TOKEN", "HF_TOKEN")
    for name in (*names, "ANOTHER"):
        monkeypatch.setenv(name, "a known value")
    sampler, _ = make()
    sampler.start()
    found = pathlib.Path(f"/proc/{sampler.sidecar.pid}/environ").read_text()
    assert "ANOTHER=a known value" in found and not any(f"{name}=" in found for name in names)


def ask(sampler, policy, key=0, M=3, temperature=0.7):
    tokens, mask = helpers.batch([2, 6, 1], L, "left", 11)
    return sample_now(
        sampler, policy, tokens, mask, jax.random.key(key), num_responses=M, temperature=temperature
    )


def test_ragged_answers_become_padded_arrays(well):
    """The responses are the digits of the seeds; seeds lie M apart and depend only on the key."""
    sampler, policy = well
    out = ask(sampler, policy)
    seeds = vllm_sampler.prompt_seeds(jax.random.key(0), 3, 3)[:, None] + np.arange(3)
    assert len(set(seeds.ravel())) == 9 and seeds.min() >= 0
    length = 1 + seeds % T
    np.testing.assert_array_equal(np.asarray(out.mask).sum(-1), length)
    expected = np.where(np.arange(T) < length[..., None], (seeds % 97)[..., None], PAD)
    np.testing.assert_array_equal(out.tokens, expected)
    np.testing.assert_array_equal(out.logprobs, np.where(out.mask, -expected, 0))
    assert out.tokens.dtype == np.int32 and out.logprobs.dtype == np.float32
    again, other = ask(sampler, policy), ask(sampler, policy, key=1)
    np.testing.assert_array_equal(again.tokens, out.tokens)
    assert (np.asarray(other.tokens) != out.tokens).any()
    assert sampler.restarts == 0 and set(sampler.seconds) == {"learn", "sync", "generate"}


def test_a_part_of_a_batch_is_sampled_as_in_the_whole(well):
    """Its prompts have the same seeds as in the whole batch."""
    sampler, policy = well
    whole = ask(sampler, policy)
    tokens, mask = helpers.batch([2, 6, 1], L, "left", 11)
    for rows in (slice(0, 1), slice(1, 3)):
        part = sample_now(
            sampler, policy, tokens[rows], mask[rows], jax.random.key(0),
            num_responses=3, temperature=0.7, batch_slice=BatchSlice(rows.start, 3),
        )  # fmt: skip
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal(a, b[rows])


def test_what_was_begun_is_read_in_any_order(well):
    """A batch is begun, then another with other weights, as at an evaluation: each gets its own answer."""
    sampler, policy = well
    tokens, mask = helpers.batch([2, 6, 1], L, "left", 11)
    pending = sampler.begin(policy, tokens, mask, jax.random.key(0), num_responses=3, temperature=0.7)
    between = ask(sampler, new_version(policy.params), key=1)
    got = pending()
    np.testing.assert_array_equal(got.tokens, ask(sampler, policy).tokens)
    np.testing.assert_array_equal(between.tokens, ask(sampler, policy, key=1).tokens)


def test_who_reads_a_batch_does_not_wait_for_the_next(make):
    """A step learns from its responses while the next step's are sampled (config.train.staleness)."""
    sampler, policy = make("sleep in the second generate")
    tokens, mask = helpers.batch([2, 6, 1], L, "left", 11)
    options = dict(num_responses=3, temperature=0.7)
    pending = [sampler.begin(policy, tokens, mask, jax.random.key(i), **options) for i in (0, 1)]
    began = time.monotonic()
    assert pending[0]().tokens.shape == (3, 3, T) and time.monotonic() - began < 15


def test_a_sidecar_killed_while_nobody_waits_is_replaced(make):
    """The update may have donated the weights, so the replacement reads them from shared memory."""
    sampler, policy = make()
    expected = ask(sampler, policy)
    tokens, mask = helpers.batch([2, 6, 1], L, "left", 11)
    begin = dict(num_responses=3, temperature=0.7)
    mine = new_version(jax.tree.map(jax.numpy.array, policy.params))
    sampler.load(mine)
    os.kill(sampler.sidecar.pid, signal.SIGSTOP)  # the kill comes before its answer
    pending = sampler.begin(mine, tokens, mask, jax.random.key(0), **begin)
    os.kill(sampler.sidecar.pid, signal.SIGKILL)
    jax.tree.map(lambda x: x.delete(), mine.params)
    np.testing.assert_array_equal(pending().tokens, expected.tokens)
    assert sampler.restarts == 1


def test_greedy_responses_are_written_once(well):
    sampler, policy = well
    one, three = ask(sampler, policy, M=1, temperature=0.0), ask(sampler, policy, M=3, temperature=0.0)
    np.testing.assert_array_equal(three.tokens, np.repeat(one.tokens, 3, 1))


def test_weights_are_sent_once_a_version(well, monkeypatch):
    sampler, policy = well
    ask(sampler, policy)
    writes = []
    write = sampler._weights.write
    monkeypatch.setattr(sampler._weights, "write", lambda views: writes.append(1) or write(views))
    ask(sampler, policy, key=1)
    assert not writes
    ask(sampler, new_version(helpers.decoder(seed=1)[1]))
    assert len(writes) == 1


def test_one_that_died_is_replaced_and_asked_again(make, well, capfd, tmp_path):
    """It reloads the weights from shared memory, and the responses equal those of a run without the fault."""
    expected = ask(*well)
    sampler, policy = make(f"die once {tmp_path / 'died'}")
    out = ask(sampler, policy)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    assert sampler.restarts == 1
    said = capfd.readouterr().err
    assert "waited for 3 responses to each of 3 prompts: it was ended by SIGKILL" in said
    assert "a line of the log" in said and "starting another" in said


@pytest.mark.parametrize(
    ("how", "said", "restarts"),
    [
        ("die in generate", "3 responses to each of 3 prompts: it was ended by SIGKILL", 1),
        ("sleep in generate", "3 responses to each of 3 prompts: no answer within 1 s", 1),
        ("die in load", r"weights of version \d+ to be loaded: it was ended by SIGKILL", 1),
        ("sleep in load", r"weights of version \d+ to be loaded: no answer within 1 s", 1),
        ("die in start", r"its engine \(.*python.*\): it was ended by SIGKILL", 0),
        ("sleep in start", r"its engine \(.*python.*\): no answer within 2 s", 0),
        ("fail in generate", "it answered ValueError: of its own", 0),
        ("fail in load", "it answered ValueError: of its own", 0),
        ("fail in start", "it answered ValueError: of its own", 0),
        ("torn", r"its weights are version \d+ with digest 0000000000000000, the policy's version", 0),
    ],
)
def test_what_cannot_be_mended_ends_and_names_what_was_awaited(make, how, said, restarts):
    patience = 2.0 if how == "sleep in start" else 60.0
    sampler, policy = make(how, timeout=1.0, start_timeout=patience, restarts=1)
    start = time.monotonic()
    with pytest.raises(SidecarError, match=said):
        ask(sampler, policy)
    assert sampler.restarts == restarts and time.monotonic() - start < 40


def test_stale_weights_are_refused(make):
    sampler, policy = make("stale")
    ask(sampler, policy)
    newer = new_version(helpers.decoder(seed=1)[1])
    with pytest.raises(
        SidecarError, match=f"weights are version {policy.version} .* the policy's version {newer.version}"
    ):
        ask(sampler, newer)


def test_a_sidecar_that_was_stopped_is_lost_not_waited_for(make):
    """After SIGSTOP the process exists but does nothing."""
    sampler, policy = make(timeout=1.0, restarts=0)
    ask(sampler, policy)
    pid = sampler.sidecar.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SidecarLostError, match="no answer within 1 s"):
        ask(sampler, policy)
    assert not pathlib.Path(f"/proc/{pid}").exists()


def test_closing_ends_the_process_and_frees_the_memory(make):
    sampler, policy = make()
    ask(sampler, policy)
    process, fd = pathlib.Path(f"/proc/{sampler.sidecar.pid}"), sampler._weights.fd
    assert process.exists()
    sampler.close()
    assert not process.exists() and not pathlib.Path(f"/proc/self/fd/{fd}").exists()


def test_what_a_killed_process_left_in_shared_memory_goes():
    """vLLM makes named semaphores of multiprocessing, which outlive a killed process."""
    code = (
        "import multiprocessing, socket, sys; from sea_jax.actors import framing; "
        "lock = multiprocessing.get_context('spawn').Lock(); sock = socket.socket(fileno=int(sys.argv[1])); "
        "framing.receive(sock, 30); framing.send(sock, {'name': lock._semlock.name}, timeout=30); "
        "framing.receive(sock, 30)"
    )
    environment = os.environ | {"PYTHONPATH": str(helpers.ROOT)}
    sidecar = Sidecar("semaphores", [sys.executable, "-c", code], environment)
    answer, _ = sidecar.request("a name", {}, timeout=30)
    file = pathlib.Path("/dev/shm/sem." + answer["name"].strip("/"))
    assert file.exists()
    sidecar.end()
    deadline = time.monotonic() + 10
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not file.exists()


def test_no_process_survives_its_parent():
    """The sidecar exits when its socket closes, so a killed parent leaves no process either."""
    code = f"""
import os, signal, sys, time
sys.path[:0] = [{str(helpers.ROOT)!r}]
from sea_jax.actors.sidecar import Sidecar
reader = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"
print(Sidecar("reader", [sys.executable, "-c", reader], dict(os.environ)).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    process, deadline = pathlib.Path(f"/proc/{int(done.stdout)}/cmdline"), time.monotonic() + 10
    while process.exists() and process.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists() or not process.read_bytes()
