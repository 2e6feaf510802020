"""Makes, loads and saves the starting policy."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sea_jax import models
from sea_jax.models import Decoder, PythiaConfig
from sea_jax.pretraining import cache, sft
from sea_jax.runtime.checkpoint_folder import open_folder
from sea_jax.runtime.mesh import to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import FILES
from sea_jax.types import Array, Config, Params


def trained_policy(config: Config, folder: Path, task: Task, mesh: Mesh) -> str:
    """Trains the SFT policy unless it is cached in `folder`; returns its folder."""
    fields = policy_fields(config) | {"task": task.fingerprint}
    folder /= f"sft-{cache.fingerprint(fields)}"
    if not (folder / "model.safetensors").exists():
        model = Decoder(policy_config(config, task))
        key = jax.random.key(config.sft.seed)
        unfinished = folder.with_name(f"{folder.name}.training")
        with open_folder(unfinished, config.checkpoint) as saved:
            params = sft.train(config.sft, task, model, key, mesh, progress=config.progress, saved=saved)
        params = to_host(params)
        cache.write_atomically(folder, lambda part: models.save(part, model, params, task.tokenizer))
        cache.remove(unfinished)
    return str(folder)


def policy_fields(config: Config) -> dict[str, Any]:
    """Returns the fields that the starting policy depends on, by section, for a fingerprint."""
    fields = {name: config[name].to_dict() for name in ("policy", "sft")}
    del fields["policy"]["trained_layers"]  # all layers of a policy of random weights are trained
    return fields


def initial_policy(config: Config, task: Task, key: Array) -> tuple[Decoder, Params]:
    """Returns the model that fine-tuning starts from: the user's, or one of random weights."""
    if config.policy.folder:
        return load_policy(config, config.policy.folder)
    model = Decoder(policy_config(config, task))
    return model, jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))["params"]


def load_policy(config: Config, folder: str, mesh: Mesh | None = None) -> tuple[Decoder, Params]:
    """Loads a policy and its f32 parameters, to the host or sharded over the mesh."""
    dtype = jnp.dtype(config.policy.dtype).type
    model, params = models.load(
        folder, dtype=dtype, remat=config.policy.remat, trained_layers=config.policy.trained_layers
    )
    return model, params if mesh is None else shard_params(mesh, model, params)


def save_policy(config: Config, folder: Path, model: Decoder, params: Params, task: Task) -> None:
    """Writes a Hugging Face folder; a given policy keeps all files of its tokenizer."""
    given = config.policy.folder
    models.save(folder, model, params, None if given else task.tokenizer)
    if given:
        copy_tokenizer(given, folder)


def copy_tokenizer(given: str, folder: Path) -> None:
    """Copies all files of a tokenizer from a folder or hub name."""
    for name in FILES:
        if (file := models.find(given) / name).exists():
            shutil.copy(file, folder / name)


def policy_config(config: Config, task: Task) -> PythiaConfig:
    """Returns the policy's shape, with the task's vocabulary and context."""
    return PythiaConfig(
        vocab_size=task.tokenizer.get_vocab_size(),
        num_layers=config.policy.num_layers,
        width=config.policy.width,
        num_heads=config.policy.num_heads,
        mlp_width=config.policy.mlp_width,
        max_length=task.prompt_length + task.response_length,
    )
