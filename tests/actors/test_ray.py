"""Ray's workers give what this process would, lost or not; a whole run on them is the same run."""

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
import pytest
import ray
from small_run import loop, small_run

from configs import quickstart
from sea_jax.actors import ray_pool, ray_workers
from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.make import local_sampler
from sea_jax.actors.sampler import Lengths, VersionedParams
from sea_jax.errors import InputError, ServiceError
from sea_jax.experiment import validate, validate_parts
from sea_jax.experiment.oracles import make_local_oracles
from sea_jax.models.generate import BatchSlice
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.runtime.mesh import make_mesh
from sea_jax.tasks import mini_tldr
from sea_jax.tasks import mini_tldr_grammar as grammar

ROOT = pathlib.Path(__file__).resolve().parents[2]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests
LENGTHS = Lengths(prompt_length=6, response_length=5, eos_id=3, pad_id=1)


def listening():
    """(address, port) of all who listen on this machine, as Linux writes them: 127.0.0.1 ends in 0100007F."""
    lines = [
        line.split()
        for kind in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    return {tuple(line[1].split(":")) for line in lines if line[3] == "0A"}


@pytest.fixture(scope="module")
def cluster():
    """One of our own, with more logical CPUs than cores; nobody else can reach it."""
    before = listening()
    ray_pool.connect(cpus=12)
    ray.get(ray.remote(lambda: None).remote())
    new = listening() - before
    assert len(new) > 4 and all(address.endswith("0100007F") for address, _ in new), new
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
    """What it returns is a function that kills a worker, which has stopped before it is asked anything."""
    pid = ray.get(pool._workers[index].pid.remote())
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGKILL)


def write(sampler, params, version, temperature=0.7, batch_slice=None):
    tokens, mask = helpers.batch([2, 6, 1, 3, 5], 6, "left", 11)
    rows = slice(batch_slice.first, batch_slice.first + 2) if batch_slice else slice(None)
    return sampler.begin(
        VersionedParams(params, version), tokens[rows], mask[rows], jax.random.key(5),
        num_responses=3, temperature=temperature, batch_slice=batch_slice,
    )  # fmt: skip


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert a.dtype == b.dtype


def test_actors_write_what_the_learner_would(sampler, tiny):
    """Five prompts among two; the policy's last version, whatever was asked before."""
    here = JaxSampler(tiny[0], 5, 3, 1, make_mesh(), 0)
    for version, temperature in ((1, 0.7), (2, 0.7), (2, 0.0)):
        params = helpers.random_params(tiny[0], version)
        got = write(sampler, params, version, temperature)()
        assert_same(got, write(here, params, version, temperature)())
        assert set(sampler.seconds) == {"learn", "sync", "generate"}
    assert (
        len(
            {np.asarray(write(here, helpers.random_params(tiny[0], v), v)().tokens).tobytes() for v in (1, 2)}
        )
        == 2
    )


def test_a_part_of_a_batch_is_written_as_in_the_whole(tiny):
    here = JaxSampler(tiny[0], 5, 3, 1, make_mesh(), 0)
    whole = write(here, tiny[1], 1)()
    for first in (0, 2, 3):
        part = write(here, tiny[1], 1, batch_slice=BatchSlice(first, 5))()
        assert_same(part, [x[first : first + 2] for x in whole])


def test_an_actor_killed_while_it_samples_is_replaced_and_writes_the_same(sampler, tiny):
    """With the weights of then, which the one that replaces it has never seen."""
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


def pool(worker, arguments=(), count=1, **limits):
    return ray_pool.Pool(
        "tests", worker, arguments, count, ray_pool.Resources(), ray_pool.PoolLimits(**limits), 0
    )


class Plain:
    def __init__(self, valid=True):
        if not valid:
            raise InputError("config.oracle.folder='x': valid is a folder")

    def pid(self):
        return os.getpid()

    def fail(self, error):
        raise error


def test_who_does_not_answer_is_waited_for_so_long_and_named(cluster):
    workers = pool(Plain, count=2, timeout_s=60.0)
    workers._limits = ray_pool.PoolLimits(timeout_s=1.0)
    kill = lose(workers, 1)
    with pytest.raises(ServiceError, match="Ray: waited for tests: a sign: 1 of 2 gave no answer within 1 s"):
        workers.wait_for(workers.submit("pid", [(), ()]), "a sign")
    kill()


def test_who_is_lost_too_often_over_one_question_ends_the_run(cluster):
    workers = pool(Plain, retries=0)
    kill = lose(workers, 0)
    asked = workers.submit("pid", [()])
    kill()
    with pytest.raises(ServiceError, match="Ray: waited for tests: a sign: "):
        workers.wait_for(asked, "a sign")


def test_what_a_worker_raises_is_raised_here(cluster):
    with pytest.raises(
        ServiceError, match=r"^Ray: waited for tests: to start: .*config.oracle.folder='x': valid"
    ) as error:
        pool(Plain, (False,))
    assert "\n" not in str(error.value)
    workers = pool(Plain)
    for mistake in (InputError("the field"), FloatingPointError("rewards"), ServiceError("gone")):
        with pytest.raises(type(mistake), match=f"^{mistake}$"):
            workers.wait_for(workers.submit("fail", [(mistake,)]), "that")


def test_a_cluster_that_has_not_got_it_or_is_not_there(cluster):
    with pytest.raises(ServiceError, match="Ray's cluster has 12 CPUs, the run asks for 5000"):
        ray_pool.reserve([{"CPU": 2500.0}] * 2, 5.0)
    with pytest.raises(ServiceError, match="Ray's cluster has 0 GPUs, the run asks for 1"):
        ray_pool.reserve([{"CPU": 1.0, "GPU": 1.0}], 5.0)


def test_a_run_on_workers_is_the_run_of_one_process(cluster, tmp_path):
    """To the bit: policy, ensemble and D_t; an actor is killed in the middle, and no label is bought twice."""
    runs = []
    for number, fields in enumerate(({}, {"ray.actors": 2, "ray.oracles": 2})):
        run = small_run(tmp_path / str(number), "sea", **{"sea.burn_in": 4, "ray.timeout_s": 100.0}, **fields)
        if fields:

            def killing(policy, step, key, start=run.actor.start, run=run):
                kill = lose(run.assets.sampler.pool, 0) if step == 2 else lambda: None
                proposal = start(policy, step, key)
                kill()
                return proposal

            run.actor.start = killing
        loop(run)
        assert run.labeller.num_queries == 16
        runs.append(run.state)
        run.assets.sampler.close()
    parts = [(state.policy, state.ensemble, state.experience) for state in runs]
    jax.tree.map(np.testing.assert_array_equal, *parts)


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
    """Learners that met as on two hosts, actors and an oracle: the metrics of `sea_jax.main`."""
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
