"""What every run of an experiment shares: task, starting policy, frozen backbone, evaluation sets."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sea_jax import models, sft
from sea_jax.config import needs_family
from sea_jax.ensemble import features, pretrain
from sea_jax.errors import InputError
from sea_jax.evaluate import EvalSet, greedy_responses
from sea_jax.models import Decoder, PythiaConfig, generate
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.runtime.mesh import make_mesh, replicate, shard_params
from sea_jax.tasks import mini_tldr
from sea_jax.tasks.protocol import Task
from sea_jax.types import Params

RankingData = Callable[[], tuple[Any, np.ndarray]]  # made when called for: (prompts and samples, rewards)


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Built once, read by all runs; only the oracle differs between seeds."""

    task: Task
    model: Decoder
    ref_params: Params
    backbone: features.Backbone
    eval_set: EvalSet
    pairs: EvalSet  # pairs of SFT samples on the tuning split: `sft` and `references` are the two
    pair_features: jax.Array  # [N, 2, E] f32
    mesh: Mesh
    family_heads: Params | None = None  # leaves [P, ...]; None where no method draws its prior from them

    def sampler(self, num_responses: int, temperature: float) -> Callable:
        """A jitted (params, tokens [B, L], mask, key) -> Responses [B, M, T]."""
        return make_sampler(
            self.model, num_responses, self.task.response_length, temperature,
            self.task.eos_id, self.task.pad_id, self.mesh,
        )  # fmt: skip

    def oracle(self, oracle_seed: int) -> BradleyTerryOracle:
        """The preference oracle of one hidden reward."""
        return BradleyTerryOracle(mini_tldr.reward_fn(oracle_seed))


@functools.cache
def make_sampler(
    model: Decoder, num_responses: int, max_tokens: int, temperature: float, eos_id: int, pad_id: int,
    mesh: Mesh | None = None,
) -> Callable:  # fmt: skip
    """`generate` with its static arguments bound, compiled once a process."""
    return jax.jit(
        functools.partial(
            generate, model, num_responses=num_responses, max_tokens=max_tokens,
            temperature=temperature, eos_id=eos_id, pad_id=pad_id, mesh=mesh,
        )
    )  # fmt: skip


@functools.cache
def make_extractor(model: Decoder, pooling: features.GatedPooling) -> Callable:
    """`features.extract`, jitted: (backbone params, prompts, mask, tokens, mask) -> [B, M, E]."""
    return jax.jit(functools.partial(features.extract, model, pooling))


def prepare(config, cache: Path, task: Task) -> Assets:
    """Builds or reads everything that runs share.

    Args:
        config: the experiment's config.
        cache: folder of trained parts, each under a fingerprint of the config fields it depends on.
        task: the embedded task.

    Returns:
        Assets on the default device.
    """
    policy_fields = {"policy": config.policy.to_dict(), "sft": config.sft.to_dict()}
    policy_fields["task"] = task.fingerprint
    mesh = make_mesh(**config.mesh)
    model, params = _starting_policy(config, cache / f"sft-{_fingerprint(policy_fields)}", task, mesh)

    rewards = mini_tldr.draw_reward(pretrain.SEED_OFFSET).tolist()
    fields = policy_fields | {"backbone": config.backbone.to_dict(), "rewards": rewards}
    data = functools.cache(lambda: _ranking_data(config.backbone, task, model, params, mesh))
    backbone = _backbone(config, cache / f"backbone-{_fingerprint(fields)}", model, params, data, mesh)
    family_heads = None
    if any(needs_family(config, method) for method in config.methods):
        fields |= {"family": config.family.to_dict(), "hidden": list(config.ensemble.hidden)}
        family_heads = _family_heads(config, cache / f"heads-{_fingerprint(fields)}", backbone, data)
    eval_set = _eval_set(config, task, model, params, mesh)
    pairs, pair_features = _heldout_pairs(config, task, model, params, backbone, mesh)
    return Assets(task, model, params, backbone, eval_set, pairs, pair_features, mesh, family_heads)


def _starting_policy(config, folder: Path, task: Task, mesh: Mesh) -> tuple[Decoder, Params]:
    """π_ref: the user's model, or one trained on the demonstrations and kept in `folder`."""
    given = config.policy.folder
    if not given and not (folder / "model.safetensors").exists():
        model = Decoder(policy_config(config, task))
        key = jax.random.key(config.sft.seed)
        params = sft.train(config.sft, task, model, key, mesh, progress=config.progress)
        _publish(folder, lambda part: models.save(part, model, params, task.tokenizer))
    model, params = models.load(given or str(folder))
    return model, shard_params(mesh, model, params)


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


def _backbone(
    config, folder: Path, model: Decoder, params: Params, data: RankingData, mesh: Mesh
) -> features.Backbone:
    cfg = config.backbone
    pooling = features.GatedPooling(cfg.pooled_width, model.config.vocab_size, cfg.gate_hidden)
    if not folder.exists():
        key = jax.random.key(cfg.seed)
        trained = pretrain.pretrain(cfg, model, params, *data(), key, mesh, config.progress)
        _write_params(folder, trained.params)
    return features.Backbone(model, pooling, replicate(mesh, _read_params(folder)))


def _family_heads(config, folder: Path, backbone: features.Backbone, data: RankingData) -> Params:
    if not folder.exists():
        key = jax.random.fold_in(jax.random.key(config.backbone.seed), 1)  # the backbone has the key itself
        hidden = tuple(config.ensemble.hidden)
        _write_params(folder, pretrain.family_heads(config.family, hidden, backbone, *data(), key))
    return _read_params(folder)


def _write_params(folder: Path, params: Params) -> None:
    flat = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    _publish(folder, lambda part: save_file(flat, part / "params.safetensors"))


def _read_params(folder: Path) -> Params:
    """Raises InputError if the file is spoilt."""
    file = folder / "params.safetensors"
    try:
        flat = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cache {file}: {error}; valid: delete {folder}, to have it made again") from None
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))


def _ranking_data(cfg, task: Task, model: Decoder, params: Params, mesh: Mesh) -> tuple[Any, np.ndarray]:
    """Samples of π_sft on train prompts, rewarded by S draws of the family, none an oracle's."""
    texts = task.prompts["train"][: cfg.num_prompts]
    prompts, mask = task.encode_prompts(texts)
    sample = make_sampler(
        model, cfg.num_responses, task.response_length, cfg.temperature, task.eos_id, task.pad_id, mesh
    )
    key, batch, parts = jax.random.key(cfg.seed), 100, []
    for start in range(0, len(texts), batch):
        rows = np.arange(start, start + batch) % len(texts)
        out = sample(params, prompts[rows], mask[rows], jax.random.fold_in(key, start))
        parts.append((np.asarray(out.tokens), np.asarray(out.mask)))
    tokens = np.concatenate([t for t, _ in parts])[: len(texts)]
    token_mask = np.concatenate([m for _, m in parts])[: len(texts)]
    repeated = [text for text in texts for _ in range(cfg.num_responses)]
    flat = [text for row in task.decode(tokens, token_mask) for text in row]
    basis = mini_tldr.reward_basis_batch(repeated, flat)
    weights = np.stack(
        [mini_tldr.draw_reward(pretrain.SEED_OFFSET + s) for s in range(cfg.num_rewards)], axis=1
    )
    rewards = (basis @ weights).reshape(*tokens.shape[:2], -1).astype(np.float32)
    return (prompts, mask, tokens, token_mask), rewards


def _eval_set(config, task: Task, model: Decoder, params: Params, mesh: Mesh) -> EvalSet:
    n = config.eval.num_prompts
    prompts = task.prompts[config.eval.split][:n]
    tokens, mask = task.encode_prompts(prompts)
    sample = make_sampler(model, 1, task.response_length, 0.0, task.eos_id, task.pad_id, mesh)
    greedy, _ = greedy_responses(task, sample, params, tokens, mask, config.eval.batch_size)
    return EvalSet(prompts, tokens, mask, task.references[config.eval.split][:n], greedy)


def _heldout_pairs(
    config, task: Task, model: Decoder, params: Params, backbone: features.Backbone, mesh: Mesh
) -> tuple[EvalSet, jax.Array]:
    """Two samples of π_sft on each tuning prompt, and their features."""
    prompts = task.prompts["tuning"][: config.eval.num_pairs]
    tokens, mask = task.encode_prompts(prompts)
    sample = make_sampler(
        model, 2, task.response_length, config.train.temperature, task.eos_id, task.pad_id, mesh
    )
    out = sample(params, tokens, mask, jax.random.key(7))
    extract = make_extractor(backbone.model, backbone.pooling)
    pair_features = extract(backbone.params, tokens, mask, out.tokens, out.mask)
    texts = task.decode(np.asarray(out.tokens), np.asarray(out.mask))
    first, second = (tuple(row[i] for row in texts) for i in (0, 1))
    return EvalSet(prompts, tokens, mask, second, first), pair_features


def _fingerprint(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder whole or not at all, so that a killed run leaves no half of a model.

    Of processes that make the same folder together, the first to end leaves its own.
    """
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    write(part)
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(part)
