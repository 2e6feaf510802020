"""vLLM as the sampler (`make test-sidecar`) gives our tokens and log-probs, whatever calls came before."""

import contextlib
import json
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
import ray
from small_run import loop, small_run

from configs import quickstart
from sea_jax.actors import framing, ray_pool, ray_workers, vllm_sampler
from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.make import local_sampler
from sea_jax.actors.sampler import Lengths, new_version, sample_now
from sea_jax.runtime.mesh import make_mesh

pytestmark = pytest.mark.sidecar

PYTHON = helpers.ROOT / ".venv-vllm/bin/python"
VOCABULARY, L, T, EOS, PAD = 97, 150, 20, 0, 1
BLOCK = 128  # tokens of a block of vLLM's prefix cache on a CPU; shorter prompts are not cached
HEAD = 32  # the smallest head size that vLLM has a kernel for
LLAMA = dict(width=64, num_heads=4, num_kv_heads=2, head_dim=HEAD, mlp_width=96)
MODELS = {
    "pythia": lambda seed: helpers.decoder(
        seed, vocab_size=VOCABULARY, width=2 * HEAD, mlp_width=96, rotary_pct=0.25, max_length=L + T
    ),
    "llama, tied": lambda seed: helpers.llama(
        seed, vocab_size=VOCABULARY, tied=True, max_length=L + T, **LLAMA
    ),
    "llama, untied": lambda seed: helpers.llama(
        seed, vocab_size=VOCABULARY, tied=False, max_length=L + T, **LLAMA
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """Yields a function seed -> (model, versioned parameters), and this model's two samplers."""
    assert PYTHON.exists(), f"no {PYTHON.relative_to(helpers.ROOT)}: make sidecar"
    make, mesh = MODELS[request.param], make_mesh()
    options = vllm_sampler.VllmOptions(str(PYTHON), L, "float32")
    model = make(0)[0]
    theirs = vllm_sampler.VllmSampler(model, T, EOS, PAD, mesh, options)
    yield make, theirs, JaxSampler(model, T, EOS, PAD, mesh, 0)
    theirs.close()


def prompts():
    """Returns the same prompts at every call; some fill a block of the prefix cache, some do not."""
    lengths = [3, L, 40, L - 1, BLOCK + 2, BLOCK + 1]
    assert sum(n > BLOCK for n in lengths) == 4
    return helpers.batch(lengths, L, "left", VOCABULARY)


def logprobs(model, params, responses, temperature):
    """Returns the log-probs of the response's tokens, from the whole sequence in one row."""
    tokens, mask = prompts()
    logits = helpers.full_logits((model, params), tokens, mask, np.asarray(responses.tokens))
    return helpers.chosen(helpers.log_softmax(logits / temperature), np.asarray(responses.tokens))


def test_greedy_tokens_and_log_probs_after_each_update(pair):
    """The same prompts under four sets of weights reveal stale caches and stale packed weights."""
    make, theirs, ours = pair
    seen = []
    for version in range(4):
        model, params = make(version)
        policy = new_version(jax.device_put(params))
        greedy = [
            sample_now(s, policy, *prompts(), jax.random.key(0), num_responses=1, temperature=0.0)
            for s in (theirs, ours)
        ]
        for a, b in zip(greedy[0][:2], greedy[1][:2], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(greedy[0].logprobs, greedy[1].logprobs, atol=1e-3)
        drawn = sample_now(
            theirs, policy, *prompts(), jax.random.key(version), num_responses=5, temperature=0.7
        )
        mask, expected = np.asarray(drawn.mask), logprobs(model, params, drawn, 0.7)
        np.testing.assert_allclose(np.asarray(drawn.logprobs)[mask], expected[mask], atol=1e-3)
        assert (np.asarray(drawn.logprobs)[~mask] == 0).all()
        assert (np.asarray(drawn.tokens)[~mask] == PAD).all()
        seen.append(np.asarray(greedy[0].tokens))
    assert len({x.tobytes() for x in seen}) == 4 and theirs.restarts == 0


def test_draws_follow_the_distribution_and_the_key(pair):
    """Goodness of fit of two prompts' first tokens at temperature 0.7; equal keys give equal responses."""
    make, theirs, _ = pair
    model, params = make(0)
    policy = new_version(jax.device_put(params))
    tokens, mask = (x[:2] for x in prompts())
    draw = lambda key, M: sample_now(  # noqa: E731
        theirs, policy, tokens, mask, jax.random.key(key), num_responses=M, temperature=0.7
    )
    many = np.asarray(draw(0, 400).tokens)[..., 0]
    logits = helpers.full_logits((model, params), tokens, mask, np.zeros((2, 1, 1), np.int32))
    expected = np.exp(helpers.log_softmax(logits[:, 0, 0] / 0.7))
    for row, probabilities in zip(many, expected, strict=True):
        order = np.argsort(-probabilities)[:10]  # the ten likeliest tokens, and all others as one class
        counts, shares = np.bincount(row, minlength=VOCABULARY)[order], probabilities[order]
        assert helpers.fits([*counts, len(row) - counts.sum()], [*shares, 1 - shares.sum()])
    again, other = draw(0, 8), draw(1, 8)
    np.testing.assert_array_equal(again.tokens, draw(0, 8).tokens)
    assert (np.asarray(again.tokens) != other.tokens).any()


def test_what_it_listens_on_is_not_to_be_reached_from_elsewhere(pair):
    make, theirs, _ = pair
    theirs.load(new_version(make(0)[1]))
    process = pathlib.Path(f"/proc/{theirs.sidecar.pid}")
    inodes = set()
    for fd in (process / "fd").iterdir():
        if (target := os.readlink(fd)).startswith("socket:["):
            inodes.add(target[8:-1])
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0" * 24 + "01000000")):
        for line in (process / f"net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                mapped = "0000000000000000FFFF0000" + "0100007F"
                assert local.split(":")[0] in (loopback, mapped), line


def test_a_sidecar_killed_in_the_midst_of_sampling(tmp_path, monkeypatch):
    """A new sidecar repeats the step with the same weights; the labels and the policy are unaffected."""
    fields = {"sampler.kind": "vllm", "sampler.python": str(PYTHON), "sea.burn_in": 4}
    send, kill_at = framing.send, []

    def fatal(sock, header, *arrays, **options):
        send(sock, header, *arrays, **options)
        if header.get("kind") == "generate" and header["num_responses"] == 5:
            kill_at[0] -= 1
            if kill_at[0] == 0:
                time.sleep(0.01)
                os.kill(run.assets.sampler.sidecar.pid, signal.SIGKILL)

    monkeypatch.setattr(framing, "send", fatal)
    found = {}
    for name, nth in (("whole", 0), ("killed", 3)):
        kill_at[:] = [nth]
        run = small_run(tmp_path / name, "sea", width=2 * HEAD, **fields)
        asked, label = [], run.labeller.ask
        run.labeller.ask = lambda *a, asked=asked, label=label, **kw: asked.append(a) or label(*a, **kw)
        loop(run)
        assert run.assets.sampler.restarts == (name == "killed")
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "policy/loss" in row]
        assert all({"time/learn_s", "time/sync_s", "time/generate_s"} <= row.keys() for row in steps)
        found[name] = asked, run.labeller.num_queries, run.state.policy.params
        run.assets.sampler.close()
    (asked, queries, params), (asked_again, queries_again, params_again) = found.values()
    assert asked == asked_again and queries == queries_again == 16
    assert sum(len(call[0]) for call in asked_again) == 16
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, params_again)


@pytest.mark.parametrize("pair", ["pythia"], indirect=True)
def test_rays_actors_have_a_vllm_each(pair):
    """Each actor samples half of the prompts; a killed actor is replaced and leaves no sidecar behind."""
    make, theirs, ours = pair
    config = quickstart.get_config()
    config.sampler.update(kind="vllm", python=str(PYTHON))
    config.ray.update(actors=2, timeout_s=120.0)
    model, params = make(5)
    policy, key = new_version(jax.device_put(params)), jax.random.key(3)
    ray_pool.connect(cpus=4)
    actors = ray_workers.RaySampler(config, Lengths(L, T, EOS, PAD), model, make_mesh(), local_sampler)
    try:
        write = lambda s, M, heat: sample_now(  # noqa: E731
            s, policy, *prompts(), key, num_responses=M, temperature=heat
        )
        greedy, drawn = write(actors, 1, 0.0), write(actors, 4, 0.7)
        np.testing.assert_array_equal(greedy.tokens, write(ours, 1, 0.0).tokens)
        np.testing.assert_array_equal(drawn.tokens, write(theirs, 4, 0.7).tokens)
        mask, expected = np.asarray(drawn.mask), logprobs(model, params, drawn, 0.7)
        np.testing.assert_allclose(np.asarray(drawn.logprobs)[mask], expected[mask], atol=1e-3)

        actor = ray.get(actors.pool._workers[1].pid.remote())
        [sidecar] = map(int, pathlib.Path(f"/proc/{actor}/task/{actor}/children").read_text().split())
        os.kill(actor, signal.SIGSTOP)
        pending = actors.begin(policy, *prompts(), key, num_responses=4, temperature=0.7)
        os.kill(actor, signal.SIGKILL)
        np.testing.assert_array_equal(pending().tokens, drawn.tokens)
        assert ray.get(actors.pool._workers[1].pid.remote()) != actor
        assert not pathlib.Path(f"/proc/{sidecar}").exists()
    finally:
        actors.close()
        ray.shutdown()


def test_the_quickstart_with_vllm(tmp_path):
    """Small runs from task to report in a separate process; they leave no process behind.

    The sidecar also writes what the policy learns from between labels.
    """
    options = {
        "sampler.kind": "vllm", "progress": False, "num_seeds": 1, "methods": "('sea','posterior_rl')",
        "policy.num_layers": 1, "sft.steps": 30, "backbone.steps": 5, "backbone.num_prompts": 64,
        "prior_heads.steps": 5, "train.query_budget": 16, "sea.burn_in": 8, "sea.num_responses": 5,
        "eval.num_prompts": 20, "eval.batch_size": 20, "eval.num_pairs": 20, "eval.every_queries": 8,
        "overrides.posterior_rl.train.query_budget": 16, "rloo.pool_factor": 2, "rloo.num_prompts": 4,
        "rloo.burst_labels": (8,), "rloo.burst_updates": (2,), "rloo.updates_per_label": 0.25,
    }  # fmt: skip
    call = [
        sys.executable, "-m", "sea_jax.main", "--config=configs/quickstart.py", f"--workdir={tmp_path}",
        *(f"--config.{name}={value}" for name, value in options.items()),
    ]  # fmt: skip
    environment = os.environ | {"OF_THE_TEST": str(tmp_path)}  # its children inherit it
    done = subprocess.run(
        call, cwd=helpers.ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for method in ("sea", "posterior_rl"):
        rows = (tmp_path / f"runs/{method}-seed0/metrics.jsonl").read_text().splitlines()
        rows = [json.loads(row) for row in rows]
        assert rows[-1]["queries"] == 16 and any("time/sync_s" in row for row in rows)
        assert (tmp_path / f"runs/{method}-seed0/policy/model.safetensors").exists()
    assert sum(row.get("improve/updates", 0) for row in rows) == 4  # 2 of the burst, then one per 4 labels
    for process in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has ended or is not ours
            assert f"OF_THE_TEST={tmp_path}".encode() not in process.read_bytes()
