"""Ray workers return the results of this process, even after a loss; so does a whole run on them."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import helpers
import jax
import numpy as np
import psutil
import pytest
import ray
from services import finished_run, local_run
from small_run import FEW_UPDATES, loop, small_run

from configs import quickstart
from sea_jax.actors import ray_pool, ray_workers
from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.make import local_sampler
from sea_jax.actors.sampler import Lengths, VersionedParams
from sea_jax.errors import InputError, ServiceError, WatchError
from sea_jax.experiment import validate, validate_parts
from sea_jax.experiment.oracles import make_local_oracles
from sea_jax.models.generate import BatchSlice
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.runtime.mesh import make_mesh
from sea_jax.tasks import mini_tldr
from sea_jax.tasks import mini_tldr_grammar as grammar

ROOT = pathlib.Path(__file__).resolve().parents[2]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
LENGTHS = Lengths(prompt_length=6, response_length=5, eos_id=3, pad_id=1)


def listening():
    """Returns (address, port) of all sockets on which the processes that this one started listen."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("tcp")
            found |= {tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture(scope="module")
def cluster():
    """Starts a private cluster with more logical CPUs than cores, which only this machine can reach."""
    before = listening()
    ray_pool.connect(cpus=12)
    ray.get(ray.remote(lambda: None).remote())
    new = listening() - before
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert len(new) > 4 and all(address in loopback for address, _ in new), new
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config():
    config = quickstart.get_config()
    config.ray.update(actors=2, oracles=2, timeout_s=100.0)
    return config


@pytest.fixture(scope="module")
def sampler(cluster, config, tiny):
    sampler = ray_workers.RaySampler(config, LENGTHS, tiny[0], make_mesh(), local_sampler)
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def oracle(cluster, config):
    return ray_workers.start_oracles(config, make_local_oracles)


def lose(pool, index):
    """Stops a worker before its next call; returns a function that kills it."""
    pid = ray.get(pool._workers[index].pid.remote())
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGKILL)


def write(sampler, params, version, batch_slice=None):
    tokens, mask = helpers.batch([2, 6, 1, 3, 5], 6, "left", 11)
    rows = slice(batch_slice.first, batch_slice.first + 2) if batch_slice else slice(None)
    return sampler.begin(
        VersionedParams(params, version), tokens[rows], mask[rows], jax.random.key(5),
        num_responses=3, temperature=0.7, batch_slice=batch_slice,
    )  # fmt: skip


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert a.dtype == b.dtype


def test_actors_write_what_the_learner_would(sampler, tiny):
    """Two actors share five prompts; they use the policy's latest version, whatever came before."""
    here, written = JaxSampler(tiny[0], 5, 3, 1, make_mesh(), 0), []
    for version in (1, 2, 2):
        params = helpers.random_params(tiny[0], version)
        got = write(sampler, params, version)()
        assert_same(got, write(here, params, version)())
        assert set(sampler.seconds) == {"learn", "sync", "generate"}
        written.append(np.asarray(got.tokens).tobytes())
    assert written[0] != written[1] == written[2]


def test_a_part_of_a_batch_is_written_as_in_the_whole(tiny):
    here = JaxSampler(tiny[0], 5, 3, 1, make_mesh(), 0)
    whole = write(here, tiny[1], 1)()
    for first in (0, 2, 3):
        part = write(here, tiny[1], 1, batch_slice=BatchSlice(first, 5))()
        assert_same(part, [x[first : first + 2] for x in whole])


def test_an_actor_killed_while_it_samples_is_replaced_and_writes_the_same(sampler, tiny):
    """The new actor uses the weights of the call, which it has not received before."""
    params = helpers.random_params(tiny[0], 7)
    before = ray.get([worker.pid.remote() for worker in sampler.pool._workers])
    kill = lose(sampler.pool, 1)
    pending = write(sampler, params, 3)
    kill()
    assert_same(pending(), write(JaxSampler(tiny[0], 5, 3, 1, make_mesh(), 0), params, 3)())
    after = ray.get([worker.pid.remote() for worker in sampler.pool._workers])
    assert after[0] == before[0] and after[1] != before[1]


def test_rewards_are_the_oracles_own_in_order_also_when_a_worker_is_killed(oracle):
    rng = random.Random(0)
    prompts = [grammar.make_post(rng).text for _ in range(5)]
    responses = [" ".join(prompt.split()[: 3 + i]) for i, prompt in enumerate(prompts)]
    here = BradleyTerryOracle(mini_tldr.reward_fn(4))
    there = oracle(4)
    kill = lose(there._pool, 0)
    signal.signal(signal.SIGALRM, lambda *_: kill())
    signal.alarm(1)
    found = there.rewards(prompts, responses)
    np.testing.assert_array_equal(found, here.rewards(prompts, responses))
    assert len(set(found.tolist())) == 5 and found.dtype == np.float32
    probability = there.probability(prompts, responses, responses[::-1])
    np.testing.assert_array_equal(probability, here.probability(prompts, responses, responses[::-1]))
    np.testing.assert_array_equal(oracle(5).rewards(prompts, responses), BradleyTerryOracle(mini_tldr.reward_fn(5)).rewards(prompts, responses))  # fmt: skip
    assert there.rewards([], []).shape == there.probability([], [], []).shape == (0,)
    with pytest.raises(ValueError, match="responses: 1 given, must be one per prompt, 5"):
        there.rewards(prompts, ["a"])


@pytest.mark.parametrize("answer", [np.zeros(2, np.float32), np.array([0, np.nan, 1], np.float32)])
def test_an_answer_that_is_none_ends_the_run(answer):
    class Pool:
        submit = wait_for = staticmethod(lambda *_: [answer])
        __len__ = lambda _: 1  # noqa: E731

    with pytest.raises(ServiceError, match=r"Ray's oracles: .* in answer to 3 responses"):
        ray_workers.RayOracle(Pool(), 0).rewards(["x"] * 3, ["y"] * 3)


def pool(*arguments, count=1):
    """Returns a pool of workers of the class Plain."""
    return ray_pool.Pool(
        "tests", Plain, arguments, count, ray_pool.Resources(), ray_pool.PoolLimits(60.0, 0), 0
    )


@pytest.fixture(scope="module")
def plain(cluster):
    """Two workers for all tests of a pool; each test that kills a worker kills a different one."""
    return pool(count=2)


class Plain:
    def __init__(self, valid=True):
        if not valid:
            raise InputError("config.oracle.folder='x': valid is a folder")

    def pid(self):
        return os.getpid()

    def fail(self, error):
        raise error


def test_what_a_worker_raises_is_raised_here(plain):
    with pytest.raises(
        ServiceError, match=r"^Ray: waited for tests: to start: .*config.oracle.folder='x': valid"
    ) as error:
        pool(False)
    assert "\n" not in str(error.value)
    for mistake in (
        InputError("the field"),
        FloatingPointError("rewards"),
        ServiceError("gone"),
        WatchError("end"),
    ):
        with pytest.raises(type(mistake), match=f"^{mistake}$"):
            plain.wait_for(plain.submit("fail", [(mistake,)]), "that")


def test_who_does_not_answer_is_waited_for_so_long_and_named(plain, monkeypatch):
    monkeypatch.setattr(plain, "_limits", ray_pool.PoolLimits(timeout_s=1.0))
    kill = lose(plain, 1)
    with pytest.raises(ServiceError, match="Ray: waited for tests: a sign: 1 of 2 gave no answer within 1 s"):
        plain.wait_for(plain.submit("pid", [(), ()]), "a sign")
    kill()


def test_who_is_lost_too_often_over_one_question_ends_the_run(plain):
    """The first loss ends the run, since this pool allows no retries."""
    kill = lose(plain, 0)
    asked = plain.submit("pid", [()])
    kill()
    with pytest.raises(ServiceError, match="Ray: waited for tests: a sign: "):
        plain.wait_for(asked, "a sign")


def test_a_cluster_that_has_not_got_it_or_is_not_there(cluster):
    with pytest.raises(ServiceError, match="Ray's cluster has 12 CPUs, the run asks for 5000"):
        ray_pool.reserve([{"CPU": 2500.0}] * 2, 5.0)
    with pytest.raises(ServiceError, match="Ray's cluster has 0 GPUs, the run asks for 1"):
        ray_pool.reserve([{"CPU": 1.0, "GPU": 1.0}], 5.0)


def killing(sampler, nth):
    """Wraps `begin` to kill actor 0 during its nth sampling for a duel; returns the list of killed actors."""
    begin, calls, killed = sampler.begin, itertools.count(1), []

    def wrapped(*arguments, num_responses, **options):
        is_nth = num_responses == 5 and next(calls) == nth
        kill = lose(sampler.pool, 0) if is_nth else lambda: None
        pending = begin(*arguments, num_responses=num_responses, **options)
        kill()
        killed.extend([0] * is_nth)
        return pending

    sampler.begin = wrapped
    return killed


def test_a_run_on_workers_is_the_run_of_one_process(cluster, tmp_path):
    """Policy, ensemble and D_t are bit-identical although an actor is killed; no label is bought twice."""
    killed = []
    fields = {"ray.actors": 2, "ray.oracles": 1, "ray.timeout_s": 100.0}
    prepare = lambda run: killed.append(killing(run.assets.sampler, 3))  # noqa: E731
    (here, _), (there, _) = local_run(), finished_run(tmp_path, prepare, **fields)
    there.assets.sampler.close()
    assert killed == [[0]] and here.labeller.num_queries == there.labeller.num_queries == 16
    parts = [(run.state.policy, run.state.ensemble, run.state.experience) for run in (here, there)]
    jax.tree.map(np.testing.assert_array_equal, *parts)


def test_updates_between_labels_are_sampled_by_the_workers(cluster, tmp_path):
    """The first updates of `posterior_rl` read the same samples from two actors as from one process.

    Matrix products of a part of a batch may round otherwise than those of the whole, on some CPUs: log-probs
    differ in the last bits, and after some updates a sampled token may be another.
    """
    written, asked = [], []
    for actors in (0, 2):
        fields = FEW_UPDATES | {"ray.actors": actors, "ray.timeout_s": 100.0}
        run = small_run(tmp_path / str(actors), "posterior_rl", **fields)
        begin = run.assets.sampler.begin

        def counted(*arguments, begin=begin, num_responses, **options):
            asked.append(num_responses)
            pending = begin(*arguments, num_responses=num_responses, **options)

            def read():
                written.append(jax.device_get(pending()))
                return pending()

            return read

        run.actor.sampler.begin = counted
        loop(run)
        assert run.labeller.num_queries == 16
    run.assets.sampler.close()
    assert asked.count(3) == 2 * 7  # 3 + 2 updates of the bursts, then one per 2 labels
    here, there = written[: len(written) // 2], written[len(written) // 2 :]
    first_burst = asked.index(3) + 3
    for one, two in zip(here[:first_burst], there[:first_burst], strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.mask, two.mask)
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ray.actors": 5}, "config.ray.actors=5: valid is at most train.batch_size=4"),
        ({"ray.actors": -1}, "config.ray.actors=-1: valid is at least 0"),
        ({"ray.oracles": 1, "oracle.kind": "remote"}, "config.ray.oracles=1: valid is 0 with oracle.kind='remote'"),
        ({"ray.retries": -1}, "config.ray.retries=-1: valid is at least 0"),
        ({"ray.timeout_s": 0.0}, "config.ray.timeout_s=0.0: valid is a number above 0"),
        ({"ray.actor_gpus": -1.0}, "config.ray.actor_gpus=-1.0: valid is a number of at least 0"),
        ({"ray.actors": 2, "sampler.devices": 2}, "config.sampler.devices=2: valid is 0 with ray.actors=2"),
    ],
)  # fmt: skip
def test_mistakes_in_the_config(fields, said):
    config = quickstart.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError) as error:
        validate.validate_parts(config)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_without_ray_that_is_said(monkeypatch):
    config = quickstart.get_config()
    config.ray.oracles = 1
    monkeypatch.setattr(validate_parts, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"config.ray.oracles=1: valid is 0 without Ray: pip install 'sea_jax\[ray\]'"
    ):
        validate.validate_parts(config)


SHORT = (
    "--config.methods=('passive',)", "--config.num_seeds=1", "--config.sft.steps=20", "--config.mesh.data=2",
    "--config.train.query_budget=16", "--config.eval.num_prompts=8", "--config.eval.batch_size=8",
    "--config.eval.num_pairs=8", "--config.eval.every_queries=16", "--config.backbone.steps=2",
    "--config.backbone.num_prompts=64",
)  # fmt: skip


def command(module, workdir, *flags):
    call = [
        sys.executable, "-m", module, "--config=configs/quickstart.py", f"--workdir={workdir}",
        f"--config.cache_dir={workdir.parent}/cache", *SHORT, *flags,
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command_on_two_learners_is_the_run_of_one_process(tmp_path):
    """Two learners, as on two hosts, with actors and an oracle give the metrics of `sea_jax.main`."""
    done = [
        command("sea_jax.main", tmp_path / "main"),
        command("launch.ray_run", tmp_path / "ray", "--learners=2", "--actors=2", "--oracles=1"),
    ]
    for each in done:
        assert each.returncode == 0, (each.stdout + each.stderr)[-3000:]
        assert "passive online DAP" in each.stdout
    rows = [
        [
            json.loads(line)
            for line in (tmp_path / name / "runs/passive-seed0/metrics.jsonl").read_text().splitlines()
        ]
        for name in ("main", "ray")
    ]
    assert len(rows[0]) == len(rows[1]) > 4
    for ours, theirs in zip(*rows, strict=True):
        for name in ours.keys() - {name for name in ours if name.startswith("time/")}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-5), name
    assert rows[1][-1]["queries"] == 16


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--address=127.0.0.1:1"], "error: Ray's cluster at '127.0.0.1:1': cannot be joined: "),
        (["--actors=9"], "error: config.ray.actors=9: valid is at most train.batch_size=4"),
        (["--actors=x"], "error: "),
    ],
)  # fmt: skip
def test_mistakes_of_the_command(tmp_path, flags, said):
    done = command("launch.ray_run", tmp_path / "ray", *flags)
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr
