"""Tests the planner on CPU devices, whose compiler needs no separate environment."""

import json
import pathlib
import re
import subprocess
import sys

import helpers
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def plan(*arguments, config="configs/quickstart.py", topology="cpu:4"):
    return subprocess.run(
        [sys.executable, "-m", "launch.plan", f"--config={config}", f"--topology={topology}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_plan_that_fits_and_how_it_grows():
    run = plan("--config.methods=('sea',)", topology="cpu:2,cpu:4")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "the embedded policy on cpu:4: 4 devices" in run.stdout and "DOES NOT FIT" not in run.stdout
    for name in ("train", "generate", "features"):
        assert re.search(rf"^  {name} .* yes ", run.stdout, re.MULTILINE)
    two, four = (line.split("|") for line in run.stdout.splitlines() if line.startswith("| cpu:"))
    assert (two[3].strip(), four[3].strip()) == ("fsdp=2", "fsdp=4")
    assert float(two[6]) < float(four[6])  # traffic grows with the number of devices


@pytest.mark.slow
def test_a_search_finds_what_fits():
    """The policy does not fit four devices with a whole batch, but fits with micro-batches."""
    size = [f"--config.policy.{name}" for name in ("width=3072", "mlp_width=12288", "num_layers=2")]
    size.append("--config.train.batch_size=16")
    assert plan(*size).returncode == 1
    run = plan(*size, "--search")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    proposed = re.search(r"^proposed: (.*)$", run.stdout, re.MULTILINE)[1]
    assert re.fullmatch(
        r"--config.mesh.*remat=\w+ --config.train.micro_batch=\d+ .*micro_batch=\d+", proposed
    )
    assert "fits (compiled" in run.stdout and "DOES NOT FIT" not in run.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (dict(topology="b200:8"), "--topology=b200:8: valid is one of a100-40gb"),
        (dict(topology="v5p:8,a100-40gb:8"), "valid are kinds of one compiler"),
        (dict(topology="cpu:3"), "valid is a multiple of the mesh's data · fsdp = 3"),
        (dict(config="configs/tldr.py:size=3b"), "size=3b"),
    ],
)
def test_bad_input_is_one_line(arguments, error):
    run = plan(**arguments)
    assert run.returncode == 2 and error in run.stderr, run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ("policy.folder=gpt2", "config.policy.folder='gpt2': model 'gpt2': shape unknown"),
        ("policy.remat=half", "config.policy.remat='half': valid is one of"),
        ("policy.foldr=x", "no such field"),
        ("mesh.tensor=3", "config.mesh.tensor=3"),
    ],
)
def test_bad_fields_are_one_line(field, error):
    run = plan(f"--config.{field}", topology="cpu:3" if "mesh" in field else "cpu:4")
    assert run.returncode == 2 and error in run.stderr, run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_the_plans_arrays_lie_as_a_runs_do():
    """The abstract state has a real run's shapes, dtypes, shardings and bytes per device."""
    mesh = json.dumps(dict(fsdp=2, tensor=2))
    assert "agree" in helpers.in_own_process(__file__, mesh, devices=4)


def others_programs(config, sea, experiment):
    """APL has a pool and scores, XPO's `update` reads y_ref, and only an ensemble needs features."""
    import jax

    assert sea.names == ("train", "generate", "features")
    made = {}
    for method in ("apl", "xpo", "passive"):
        config.methods = (method,)
        made[method] = experiment(config, jax.devices())
    apl, xpo, passive = made.values()
    assert apl.names == ("train", "generate", "pool", "score")
    assert xpo.names == passive.names == ("train", "generate")
    shapes = {
        name: [x.shape for x in jax.tree.leaves(apl.step(name).traced.out_info)] for name in apl.names[1:4]
    }
    assert shapes["pool"][0] == (8 * 4, 8, 6) and shapes["generate"][0] == (4, 8, 6)
    assert shapes["score"] == [(1, 4, 8)]
    y_ref = len(jax.tree.leaves(xpo.step("train").traced.in_avals)) - len(
        jax.tree.leaves(passive.step("train").traced.in_avals)
    )
    assert y_ref == 2
    between_labels(config, experiment)


def between_labels(config, experiment):
    """The updates between labels count as often as they are made, and the pool of prompts is sampled."""
    import jax

    config.methods = ("posterior_rl",)
    config.rloo.update(dict(pool_factor=2, num_prompts=4, num_responses=3, updates_per_label=1.5))
    made = experiment(config, jax.devices())
    steps = {name: made.step(name) for name in made.names}
    assert tuple(steps) == (
        "train", "generate", "features", "improve", "improve_generate", "improve_features",
    )  # fmt: skip
    assert [step.calls for step in steps.values()] == [1, 1, 1, 6, 6, 6]
    shapes = {name: [x.shape for x in jax.tree.leaves(step.traced.out_info)] for name, step in steps.items()}
    M = config.sea.num_responses
    assert shapes["generate"][0] == (2 * 4, M, 6) and shapes["improve_generate"][0] == (4, 3, 6)
    assert shapes["features"][0][:2] == (2 * 4, M) and shapes["improve_features"][0][:2] == (4, 3)
    policy = [x.shape for x in jax.tree.leaves(made.state.policy)]
    assert shapes["improve"][: len(policy)] == policy
    config.methods = ("posterior_dpo",)
    of_pairs = experiment(config, jax.devices())
    assert of_pairs.names == made.names and of_pairs.step("improve").calls == 6
    improved = [x.shape for x in jax.tree.leaves(of_pairs.step("improve").traced.out_info)]
    assert improved[: len(jax.tree.leaves(of_pairs.state))] == [
        x.shape for x in jax.tree.leaves(of_pairs.state)
    ]
    config.methods = ("passive_replay",)
    config.replay.updates_per_label = 2.0
    replay = experiment(config, jax.devices())
    assert replay.names == ("train", "generate") and replay.step("train").calls == 1 + 8


def hidden_states(config, run, folder, experiment):
    """Of states the plan has the real backbone's arrays, and counts those that are π_ref's own once."""
    import jax

    from launch.steps import device_bytes
    from sea_jax.pretraining.hidden_states import PolicyStates

    config.methods = ("sea",)
    for scaling, layer in (("pca", 1), ("standard", 1), ("pca", 0)):
        config.backbone.update(dict(kind="policy", num_prompts=8, scaling=scaling, width=5, layer=layer))
        config.backbone.pool = "both" if layer else "mean"
        shared = run.assets
        real = PolicyStates(
            config, folder, shared.task, shared.model, shared.ref_params, shared.mesh, "sft-1"
        ).backbone
        made = experiment(config, jax.devices())
        assert made.feature_width == real.feature_width and made.backbone == real.model
        check_arrays(real.params, made.backbone_params)
        step = made.step("features")
        M = config.sea.num_responses
        assert [x.shape for x in jax.tree.leaves(step.traced.out_info)] == [(4, M, real.feature_width)]
        own = device_bytes({name: x for name, x in made.backbone_params.items() if name != "decoder"})
        assert device_bytes(made.resident["backbone"]) == own  # the layers are all, or none
        compiled = step.traced.lower().compile()
        inputs = compiled.memory_analysis().argument_size_in_bytes
        resident = sum(device_bytes(made.resident[group]) for group in step.reads)
        assert 0 < inputs - device_bytes(made.backbone_params) < 10_000 < resident


def check_arrays(real, planned):
    """Compares shapes, dtypes and shardings."""
    import jax

    paths = jax.tree_util.tree_flatten_with_path(real)[0]
    for (path, x), abstract in zip(paths, jax.tree.leaves(planned), strict=True):
        name = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype) == (abstract.shape, abstract.dtype), name
        assert x.sharding.is_equivalent_to(abstract.sharding, x.ndim), name


def main(mesh):
    import dataclasses
    import tempfile

    import jax
    from small_run import small_run

    from launch.steps import Experiment, device_bytes
    from sea_jax import models, tasks

    with tempfile.TemporaryDirectory() as folder:
        run = small_run(pathlib.Path(folder), "sea", **{f"mesh.{axis}": size for axis, size in mesh.items()})
        models.save(pathlib.Path(folder), run.assets.model, jax.device_get(run.assets.ref_params), None)
        config = run.config
        config.policy.folder, config.methods = folder, ("sea",)
        lengths = dict(prompt_length=run.assets.task.prompt_length, response_length=6)
        tasks.TASKS["mini_tldr"] = dataclasses.replace(tasks.TASKS["mini_tldr"], **lengths)
        config.backbone.update(pooled_width=4, width=4, gate_hidden=4)
        made = Experiment(config, jax.devices())
        others_programs(config, made, Experiment)
        hidden_states(config, run, pathlib.Path(folder), Experiment)
    check_arrays(run.state, made.state)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(run.state.policy))
    assert held == device_bytes(made.state.policy)
    compiled = made.step("train").traced.lower().compile()
    assert compiled.memory_analysis().argument_size_in_bytes > held
    print("agree")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
