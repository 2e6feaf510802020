"""A whole run in miniature, for tests of the host loop."""

import contextlib
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np

from configs import quickstart
from sea_jax import models
from sea_jax.actors.make import sampler_for
from sea_jax.actors.sampler import VersionedParams
from sea_jax.ensemble import features
from sea_jax.evaluate import EvalSet, HeldoutPairs
from sea_jax.experiment import assets, checkpoints
from sea_jax.experiment.checkpoints import RunSaver
from sea_jax.experiment.logbook import Logbook
from sea_jax.experiment.oracles import make_oracles
from sea_jax.experiment.setup import make_evaluator, make_run
from sea_jax.labels.journal import Journal
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import is_main, make_mesh, sampling_mesh
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.sharding import shard_params
from sea_jax.runtime.stop import StopRequest
from sea_jax.tasks import mini_tldr, protocol
from sea_jax.tasks import mini_tldr_grammar as grammar
from sea_jax.train import train

# Of the methods that learn between labels: 3 updates after 8 labels, 2 more after 12, then one per 2 labels.
FEW_UPDATES = {
    "rloo.pool_factor": 2, "rloo.num_prompts": 4, "rloo.num_responses": 3, "rloo.updates_per_label": 0.5,
    "rloo.burst_labels": (8, 12), "rloo.burst_updates": (3, 2),
}  # fmt: skip


@functools.cache
def small_parts(width):
    """A task of eight posts, a policy and a backbone of random weights; made once in a process."""
    rng = random.Random(0)
    posts = tuple(grammar.make_post(rng).text for _ in range(8))
    tokenizer = mini_tldr.tokenizers.Tokenizer(mini_tldr.models.BPE())
    tokenizer.pre_tokenizer = mini_tldr.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = mini_tldr.decoders.ByteLevel()
    trainer = mini_tldr.trainers.BpeTrainer(
        vocab_size=400, special_tokens=[mini_tldr.PAD, mini_tldr.EOS], show_progress=False,
        initial_alphabet=sorted(mini_tldr.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(posts, trainer)
    longest = max(len(e.ids) for e in tokenizer.encode_batch(list(posts)))
    splits = dict.fromkeys(protocol.SPLITS, posts)
    task = protocol.Task("posts", tokenizer, 0, 1, longest, 6, splits, splits, posts)
    model = models.Decoder(models.PythiaConfig(400, num_layers=1, width=width, num_heads=2, mlp_width=16))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    pooling = features.GatedPooling(4, 400, 4)
    states, ones = jnp.zeros((1, 1, 2, width)), jnp.ones((1, 1, 1))
    backbone = features.Backbone(
        model, pooling,
        {
            "decoder": params, "projection": jnp.eye(4), "mean": jnp.zeros(4),
            "pooling": jax.jit(pooling.init)(jax.random.key(1), states, ones.astype(int), ones, ones)["params"],
        },
    )  # fmt: skip
    return task, model, params, backbone


def small_run(folder, method, width=16, **overrides):
    """A Run on eight posts with a policy and a backbone of random weights; nothing is trained for it."""
    task, model, params, backbone = small_parts(width)
    posts = task.prompts["train"]
    config = quickstart.get_config()
    config.progress = False
    config.train.update(batch_size=4, query_budget=16)
    config.eval.update(num_prompts=4, batch_size=4, every_queries=16)
    config.sea.update(num_responses=5, passive_queries=0)
    config.ensemble.update(num_members=3, hidden=(8,), prior="random", capacity=64, batch_size=8)
    config.update_from_flattened_dict(overrides)
    data = EvalSet(posts[:4], *task.encode_prompts(posts[:4]), posts[:4], posts[:4])
    devices = config.sampler.devices
    mesh = make_mesh(**config.mesh, extra=devices)
    own_mesh = sampling_mesh(mesh, devices) if devices else None
    params = shard_params(mesh, model, params)
    shared = assets.Assets(
        task=task, model=model, ref_params=params, initial_params=lambda: params, backbone=backbone,
        eval_set=data, pairs=HeldoutPairs(posts[:4], posts[:4], posts[:4], jnp.zeros((4, 2, 4))), mesh=mesh,
        oracle=make_oracles(config, mesh),
        sampler=sampler_for(config, task, model, mesh, own_mesh),
    )  # fmt: skip
    run = make_run(config, shared, method, 0)
    run.assets, run.folder = shared, folder  # for tests to look at
    return run


def watched(run):
    """What the run's sampler is asked for: (policy as it was, responses) of each step, in order."""
    seen, begin = [], run.actor.sampler.begin

    def watch(policy, *rest, **options):
        kept = VersionedParams(jax.tree.map(np.array, policy.params), policy.version)
        pending = begin(policy, *rest, **options)
        if options["num_responses"] > 1:
            seen.append((kept, pending()))
        return pending

    run.actor.sampler = type("Watched", (), dict(begin=staticmethod(watch), seconds={}))
    return seen


def logbook(run, writer):
    """The observer that an experiment gives a run."""
    return Logbook(run.folder, writer, make_evaluator(run, run.assets))


def loop(run):
    """Trains, and returns the rows of metrics.jsonl and of samples.jsonl."""
    with MetricWriter(run.folder) as writer:
        train(run, logbook(run, writer))
    read = lambda name: [json.loads(line) for line in (run.folder / name).read_text().splitlines()]  # noqa: E731
    return read("metrics.jsonl"), read("samples.jsonl")


def go_on(run, last_step=None, every_s=0):
    """Goes on with a run from the checkpoints and the journal in its folder, up to a step or to its end."""

    class StopAt(RunSaver):
        def end_step(self, run, logbook, last):
            super().end_step(run, logbook, last)
            if run.step == last_step:
                raise StopIteration

    with contextlib.ExitStack() as files:
        if is_main():
            run.labeller.journal = files.enter_context(Journal(run.folder, "the task"))
        saved = files.enter_context(CheckpointFolder(run.folder / "checkpoints", every_s, 2))
        restored = checkpoints.restore(saved, run)
        writer = files.enter_context(MetricWriter(run.folder, restored and restored["files"]))
        evaluator = make_evaluator(run, run.assets)
        saver = StopAt(saved, StopRequest())
        with contextlib.suppress(StopIteration):
            train(run, Logbook(run.folder, writer, evaluator, saver, restored))
    return restored is not None
