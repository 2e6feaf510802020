"""The starting policy: its shape, where its parameters come from, and how it is saved."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sea_jax import models
from sea_jax.models import Decoder, PythiaConfig
from sea_jax.pretraining import cache, sft
from sea_jax.runtime.mesh import to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import FILES
from sea_jax.types import Array, Config, Params


def trained_policy(config: Config, folder: Path, task: Task, mesh: Mesh) -> str:
    """Where π_sft is that was trained on the demonstrations, now or before, and is kept in `folder`."""
    fields = {name: config[name].to_dict() for name in ("policy", "sft")} | {"task": task.fingerprint}
    folder /= f"sft-{cache.fingerprint(fields)}"
    if not (folder / "model.safetensors").exists():
        model = Decoder(policy_config(config, task))
        key = jax.random.key(config.sft.seed)
        params = to_host(sft.train(config.sft, task, model, key, mesh, progress=config.progress))
        cache.write_atomically(folder, lambda part: models.save(part, model, params, task.tokenizer))
    return str(folder)


def initial_policy(config: Config, task: Task, key: Array) -> tuple[Decoder, Params]:
    """What supervised fine-tuning begins from: the user's model, or random weights."""
    if config.policy.folder:
        return load_policy(config, config.policy.folder)
    model = Decoder(policy_config(config, task))
    return model, jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))["params"]


def load_policy(config: Config, folder: str, mesh: Mesh | None = None) -> tuple[Decoder, Params]:
    """A policy and its parameters in f32: on the host, or each device of the mesh with its part."""
    dtype = jnp.dtype(config.policy.dtype).type
    model, params = models.load(folder, dtype=dtype, remat=config.policy.remat)
    return model, params if mesh is None else shard_params(mesh, model, params)


def save_policy(config: Config, folder: Path, model: Decoder, params: Params, task: Task) -> None:
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


def policy_config(config: Config, task: Task) -> PythiaConfig:
    """The policy's shape; its vocabulary and context are the task's."""
    return PythiaConfig(
        vocab_size=task.tokenizer.get_vocab_size(),
        num_layers=config.policy.num_layers,
        width=config.policy.width,
        num_heads=config.policy.num_heads,
        mlp_width=config.policy.mlp_width,
        max_length=task.prompt_length + task.response_length,
    )
