"""Makes, loads and saves the starting policy."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sea_jax import models
from sea_jax.models import Decoder, PythiaConfig
from sea_jax.pretraining import cache, content, sft
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import FILES
from sea_jax.types import Array, Config, Params

_SHAPE = ("num_layers", "width", "num_heads", "mlp_width")  # all that SFT reads of section `policy`


def trained_policy(config: Config, folder: Path, task: Task, mesh: Mesh) -> str:
    """Trains the SFT policy unless it is cached in `folder`; returns its folder."""
    recipe = policy_recipe(config, task)

    def make(saved: CheckpointFolder | None) -> cache.Write:
        model, key = Decoder(policy_config(config, task)), jax.random.key(config.sft.seed)
        title = f"SFT {recipe.name}"
        params = sft.train(config.sft, task, model, key, mesh, config.progress, saved=saved, title=title)
        on_host = to_host(params)
        return lambda part: models.save(part, model, on_host, task.tokenizer)

    return str(cache.obtain(folder, recipe, make, config.checkpoint))


def policy_recipe(config: Config, task: Task) -> cache.Recipe:
    """Describes what the policy depends on that is trained on an embedded task."""
    fields = {f"policy.{name}": config.policy[name] for name in _SHAPE}
    fields |= {f"sft.{name}": value for name, value in config.sft.to_dict().items()}
    read = {"task": task.fingerprint}
    if not task.demonstrations:  # then it learns from references
        read["references"] = content.of_value(task.references["train"])
    return cache.Recipe("sft", sft.VERSION, fields, read)


def policy_content(config: Config, task: Task) -> str:
    """Returns what tells the starting policy from others: a given one's content, or a trained one's name."""
    given = config.policy.folder
    return content.of_model(given) if given else policy_recipe(config, task).name


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
