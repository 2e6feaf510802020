"""What every run of an experiment shares: task, starting policy, frozen backbone, evaluation sets."""

import dataclasses
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
from sea_jax.models.generate import make_sampler
from sea_jax.oracles import reward_model
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.ranker import Ranker
from sea_jax.runtime.mesh import fetch, make_mesh, shard_params
from sea_jax.tasks import mini_tldr
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import FILES
from sea_jax.types import Array, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Built once, read by all runs; only the oracle differs between seeds."""

    task: Task
    model: Decoder
    ref_params: Params
    backbone: features.Extractor
    eval_set: EvalSet
    pairs: EvalSet  # pairs of SFT samples on the tuning split: `sft` and `references` are the two
    pair_features: jax.Array  # [N, 2, E] f32
    mesh: Mesh
    oracle: Callable[[int], Any]  # oracle seed -> the preference oracle
    family_heads: Params | None = None  # leaves [P, ...]; None where no method draws its prior from them

    def sampler(self, num_responses: int, temperature: float, micro_batch: int = 0) -> Callable:
        """A jitted (params, tokens [B, L], mask, key) -> Responses [B, M, T]; see `make_sampler`."""
        return make_sampler(
            self.model, num_responses, self.task.response_length, temperature,
            self.task.eos_id, self.task.pad_id, self.mesh, micro_batch,
        )  # fmt: skip


def prepare(config, cache_folder: Path, task: Task) -> Assets:
    """Builds or reads everything that runs share.

    Args:
        config: the experiment's config.
        cache_folder: of trained parts, each under a fingerprint of the config fields it depends on.
        task: prompts and their tokenizer.

    Returns:
        Assets on the config's mesh.
    """
    mesh = make_mesh(**config.mesh)
    model, params = _starting_policy(config, cache_folder, task, mesh)
    backbone, family_heads = _backbone(config, cache_folder, task, model, params, mesh)
    eval_set = _eval_set(config, task, model, params, mesh)
    pairs, pair_features = _heldout_pairs(config, task, model, params, backbone, mesh)
    oracle = _oracle(config, mesh)
    return Assets(task, model, params, backbone, eval_set, pairs, pair_features, mesh, oracle, family_heads)


def _oracle(config, mesh: Mesh) -> Callable[[int], BradleyTerryOracle]:
    """An oracle for every oracle seed; a reward model is one and the same for all."""
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


def _starting_policy(config, folder: Path, task: Task, mesh: Mesh) -> tuple[Decoder, Params]:
    """π_ref: the user's model, or one trained on the demonstrations and kept in `folder`."""
    fields = {name: config[name].to_dict() for name in ("policy", "sft")} | {"task": task.fingerprint}
    folder /= f"sft-{cache.fingerprint(fields)}"
    if not config.policy.folder and not (folder / "model.safetensors").exists():
        model = Decoder(policy_config(config, task))
        key = jax.random.key(config.sft.seed)
        params = fetch(sft.train(config.sft, task, model, key, mesh, progress=config.progress))
        cache.publish(folder, lambda part: models.save(part, model, params, task.tokenizer))
    model, params = _load_policy(config, config.policy.folder or str(folder))
    return model, shard_params(mesh, model, params)


def initial_policy(config, task: Task, key: Array) -> tuple[Decoder, Params]:
    """What supervised fine-tuning begins from: the user's model, or random weights."""
    if config.policy.folder:
        return _load_policy(config, config.policy.folder)
    model = Decoder(policy_config(config, task))
    return model, jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))["params"]


def _load_policy(config, folder: str) -> tuple[Decoder, Params]:
    dtype = jnp.dtype(config.policy.dtype).type
    return models.load(folder, dtype=dtype, remat=config.policy.remat)


def save_policy(config, folder: Path, model: Decoder, params: Params, task: Task) -> None:
    """A Hugging Face folder; a policy that came with a tokenizer keeps all of that tokenizer's files."""
    given = config.policy.folder
    models.save(folder, model, params, None if given else task.tokenizer)
    if given:
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


def _eval_set(config, task: Task, model: Decoder, params: Params, mesh: Mesh) -> EvalSet:
    n = config.eval.num_prompts
    prompts = task.prompts[config.eval.split][:n]
    tokens, mask = task.encode_prompts(prompts)
    sample = make_sampler(model, 1, task.response_length, 0.0, task.eos_id, task.pad_id, mesh)
    greedy, _ = greedy_responses(task, sample, params, tokens, mask, config.eval.batch_size)
    return EvalSet(prompts, tokens, mask, task.references[config.eval.split][:n], greedy)


def _heldout_pairs(
    config, task: Task, model: Decoder, params: Params, backbone: features.Extractor, mesh: Mesh
) -> tuple[EvalSet, jax.Array]:
    """Two samples of π_sft on each tuning prompt, and their features."""
    prompts = task.prompts["tuning"][: config.eval.num_pairs]
    tokens, mask = task.encode_prompts(prompts)
    sample = make_sampler(
        model, 2, task.response_length, config.train.temperature, task.eos_id, task.pad_id, mesh
    )
    out = sample(params, tokens, mask, jax.random.key(7))
    pair_features = backbone(prompts, tokens, mask, out)
    texts = task.decode(*fetch((out.tokens, out.mask)))
    first, second = (tuple(row[i] for row in texts) for i in (0, 1))
    return EvalSet(prompts, tokens, mask, second, first), pair_features
