"""What every run of an experiment shares: task, starting policy, frozen backbone, evaluation sets."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sea_jax import cache, models, sft
from sea_jax.config import needs_family
from sea_jax.ensemble import features, pair_encoder
from sea_jax.evaluate import EvalSet, greedy_responses
from sea_jax.models import Decoder, PythiaConfig
from sea_jax.models.params import cast_matrices
from sea_jax.oracles import connect, reward_model
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.ranker import Ranker
from sea_jax.runtime import samplers
from sea_jax.runtime.mesh import fetch, from_main, make_mesh, mesh_apart
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks import mini_tldr
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import FILES
from sea_jax.types import Array, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Built once, read by all runs; only the oracle differs between seeds."""

    task: Task
    model: Decoder
    ref_params: Params  # matrices in the precision that the model computes in
    initial_params: Callable[[], Params]  # θ⁰ in f32, read anew at each call
    backbone: features.Extractor
    eval_set: EvalSet
    pairs: EvalSet  # pairs of SFT samples on the tuning split: `sft` and `references` are the two
    pair_features: jax.Array  # [N, 2, E] f32
    mesh: Mesh
    oracle: Callable[[int], Any]  # oracle seed -> the preference oracle
    sampler: samplers.Sampler
    family_heads: Params | None = None  # leaves [P, ...]; None where no method draws its prior from them


def prepare(config, cache_folder: Path, task: Task) -> Assets:
    """Builds or reads everything that runs share.

    Args:
        config: the experiment's config.
        cache_folder: of trained parts, each under a fingerprint of the config fields it depends on.
        task: prompts and their tokenizer.

    Returns:
        Assets on the config's mesh.
    """
    mesh = make_mesh(**config.mesh, apart=config.sampler.devices)
    apart = mesh_apart(mesh, config.sampler.devices) if config.sampler.devices else None
    oracle = make_oracles(config, apart or mesh)  # first: one out of reach is found out before training
    folder = config.policy.folder or trained_policy(config, cache_folder, task, mesh)
    model, params = load_policy(config, folder, mesh)
    ref_params = jax.jit(cast_matrices, static_argnums=1)(params, model.config.dtype)
    backbone, family_heads = _backbone(config, cache_folder, task, model, params, mesh)
    del params

    sampler = samplers.make(config, task, model, mesh, apart)
    sample = functools.partial(samplers.generate, sampler, samplers.versioned(ref_params))
    eval_set = _eval_set(config, task, functools.partial(sample, num_responses=1, temperature=0.0))
    sample = functools.partial(sample, num_responses=2, temperature=config.train.temperature)
    pairs, pair_features = _heldout_pairs(config, task, sample, backbone)
    return Assets(
        task=task, model=model, ref_params=ref_params,
        initial_params=lambda: load_policy(config, folder, mesh)[1],
        backbone=backbone, family_heads=family_heads, eval_set=eval_set, pairs=pairs,
        pair_features=pair_features, mesh=mesh, oracle=oracle, sampler=sampler,
    )  # fmt: skip


def train_parts(config, cache_folder: Path, task: Task) -> None:
    """Trains those parts that `prepare` would not find; the arguments are its own."""
    mesh = make_mesh(**config.mesh)
    folder = config.policy.folder or trained_policy(config, cache_folder, task, mesh)
    if config.backbone.kind == "ranker":
        _backbone(config, cache_folder, task, *load_policy(config, folder, mesh), mesh)


def make_oracles(config, mesh: Mesh) -> Callable[[int], Any]:
    """An oracle for every oracle seed; a reward model is one and the same for all."""
    if config.ray.oracles:
        from sea_jax.runtime import ray_workers  # which imports Ray

        return ray_workers.oracles(config)
    if config.oracle.kind in connect.KINDS:
        return connect.oracles(config, from_main)
    if config.oracle.kind == "reward_model":
        oracle = reward_model.load(config.oracle, mesh)
        return lambda seed: oracle
    return lambda seed: BradleyTerryOracle(mini_tldr.reward_fn(seed))


def _backbone(
    config, folder: Path, task: Task, model: Decoder, params: Params, mesh: Mesh
) -> tuple[features.Extractor, Params | None]:
    """The frozen backbone, and the heads of the prior where a method draws from them."""
    if config.backbone.kind == "encoder":
        return pair_encoder.load(config.encoder, task.decode, mesh), None
    ranker = Ranker(config, folder, task, model, params, mesh)
    drawn = any(needs_family(config, method) for method in config.methods)
    return ranker.backbone, ranker.family_heads if drawn else None


def trained_policy(config, folder: Path, task: Task, mesh: Mesh) -> str:
    """Where π_sft is that was trained on the demonstrations, now or before, and is kept in `folder`."""
    fields = {name: config[name].to_dict() for name in ("policy", "sft")} | {"task": task.fingerprint}
    folder /= f"sft-{cache.fingerprint(fields)}"
    if not (folder / "model.safetensors").exists():
        model = Decoder(policy_config(config, task))
        key = jax.random.key(config.sft.seed)
        params = fetch(sft.train(config.sft, task, model, key, mesh, progress=config.progress))
        cache.publish(folder, lambda part: models.save(part, model, params, task.tokenizer))
    return str(folder)


def initial_policy(config, task: Task, key: Array) -> tuple[Decoder, Params]:
    """What supervised fine-tuning begins from: the user's model, or random weights."""
    if config.policy.folder:
        return load_policy(config, config.policy.folder)
    model = Decoder(policy_config(config, task))
    return model, jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))["params"]


def load_policy(config, folder: str, mesh: Mesh | None = None) -> tuple[Decoder, Params]:
    """A policy and its parameters in f32: on the host, or each device of the mesh with its part."""
    dtype = jnp.dtype(config.policy.dtype).type
    model, params = models.load(folder, dtype=dtype, remat=config.policy.remat)
    return model, params if mesh is None else shard_params(mesh, model, params)


def save_policy(config, folder: Path, model: Decoder, params: Params, task: Task) -> None:
    """A Hugging Face folder; a policy that came with a tokenizer keeps all of that tokenizer's files."""
    given = config.policy.folder
    models.save(folder, model, params, None if given else task.tokenizer)
    if given:
        copy_tokenizer(given, folder)


def copy_tokenizer(given: str, folder: Path) -> None:
    """All files of a tokenizer, from a folder or a hub name."""
    for name in FILES:
        if (file := models.find(given) / name).exists():
            shutil.copy(file, folder / name)


def policy_config(config, task: Task) -> PythiaConfig:
    """The policy's shape; its vocabulary and context are the task's."""
    return PythiaConfig(
        vocab_size=task.tokenizer.get_vocab_size(),
        num_layers=config.policy.num_layers,
        width=config.policy.width,
        num_heads=config.policy.num_heads,
        mlp_width=config.policy.mlp_width,
        max_length=task.prompt_length + task.response_length,
    )


def _eval_set(config, task: Task, sample: Callable) -> EvalSet:
    n = config.eval.num_prompts
    prompts = task.prompts[config.eval.split][:n]
    tokens, mask = task.encode_prompts(prompts)
    greedy, _ = greedy_responses(task, sample, tokens, mask, config.eval.batch_size)
    return EvalSet(prompts, tokens, mask, task.references[config.eval.split][:n], greedy)


def _heldout_pairs(
    config, task: Task, sample: Callable, backbone: features.Extractor
) -> tuple[EvalSet, jax.Array]:
    """Two samples of π_sft on each tuning prompt, and their features."""
    prompts = task.prompts["tuning"][: config.eval.num_pairs]
    tokens, mask = task.encode_prompts(prompts)
    out = sample(tokens, mask, jax.random.key(7))
    pair_features = backbone(prompts, tokens, mask, out)
    texts = task.decode(*fetch((out.tokens, out.mask)))
    first, second = (tuple(row[i] for row in texts) for i in (0, 1))
    return EvalSet(prompts, tokens, mask, second, first), pair_features
