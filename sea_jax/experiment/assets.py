"""Parts that all runs of an experiment share: task, starting policy, frozen backbone, evaluation sets."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sea_jax.actors.make import sampler_for
from sea_jax.actors.sampler import Sampler, new_version, sample_now
from sea_jax.ensemble import pair_encoder
from sea_jax.ensemble.features import Extractor
from sea_jax.errors import InputError
from sea_jax.evaluate import EvalSet, HeldoutPairs, greedy_responses
from sea_jax.experiment.oracles import make_oracles
from sea_jax.experiment.validate_methods import pretrained_prior
from sea_jax.methods import METHODS
from sea_jax.models import Decoder
from sea_jax.models.params import cast_matrices
from sea_jax.pretraining.cache import Recipe
from sea_jax.pretraining.hidden_states import PolicyStates
from sea_jax.pretraining.policy import load_policy, policy_content, trained_policy
from sea_jax.pretraining.prepared import Prepared, prior_recipe
from sea_jax.pretraining.ranker import Ranker
from sea_jax.runtime.mesh import make_mesh, sampling_mesh, to_host
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

_BACKBONES: dict[str, type[Prepared]] = {"ranker": Ranker, "policy": PolicyStates}


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Parts that are built once and read by all runs; only the oracle differs between seeds."""

    task: Task
    model: Decoder
    ref_params: Params  # matrices in the precision that the model computes in
    initial_params: Callable[[], Params]  # θ⁰ in f32, read anew at each call
    backbone: Extractor | None  # None where no method learns an ensemble
    eval_set: EvalSet
    pairs: HeldoutPairs | None  # of the tuning split; None where no method learns an ensemble
    mesh: Mesh
    oracle: Callable[[int], Any]  # oracle seed -> the preference oracle
    sampler: Sampler
    priors: Mapping[str, Params] = dataclasses.field(default_factory=dict)  # pretrained, by kind of posterior


def prepare(config: Config, cache_folder: Path, task: Task, workdir: Path | None = None) -> Assets:
    """Builds or reads everything that runs share.

    Args:
        config: the experiment's config.
        cache_folder: holds trained parts, each named by a hash of all that it is made from.
        task: prompts and their tokenizer.
        workdir: as the `folder` of `make_oracles`.

    Returns:
        Assets on the config's mesh.
    """
    mesh = make_mesh(**config.mesh, extra=config.sampler.devices)
    own_mesh = sampling_mesh(mesh, config.sampler.devices) if config.sampler.devices else None
    oracle = make_oracles(config, own_mesh or mesh, task, workdir)  # first, so that mistakes precede training
    policy = policy_content(config, task)
    read = _policy_reader(config, cache_folder, task, mesh, policy)
    model, params = read()
    ref_params = jax.jit(cast_matrices, static_argnums=1)(params, model.config.dtype)
    backbone, priors = None, {}
    if learns_ensemble(config):
        # A ranker is trained from f32; hidden states are those of π_ref, whose arrays they share.
        start = params if config.backbone.kind == "ranker" else ref_params
        backbone, priors = _backbone(config, cache_folder, task, model, start, mesh, policy)
    del params

    sampler = sampler_for(config, task, model, mesh, own_mesh)
    sample = functools.partial(sample_now, sampler, new_version(ref_params))
    eval_set = _eval_set(config, task, functools.partial(sample, num_responses=1, temperature=0.0))
    sample = functools.partial(sample, num_responses=2, temperature=config.train.temperature)
    pairs = _heldout_pairs(config, task, sample, backbone) if backbone else None
    return Assets(
        task=task, model=model, ref_params=ref_params,
        initial_params=lambda: read()[1],
        backbone=backbone, priors=priors, eval_set=eval_set, pairs=pairs,
        mesh=mesh, oracle=oracle, sampler=sampler,
    )  # fmt: skip


def train_parts(config: Config, cache_folder: Path, task: Task) -> None:
    """Trains the parts that the cache lacks; the arguments are those of `prepare`."""
    mesh = make_mesh(**config.mesh)
    policy = policy_content(config, task)
    read = _policy_reader(config, cache_folder, task, mesh, policy)
    if config.backbone.kind != "encoder" and learns_ensemble(config):
        _backbone(config, cache_folder, task, *read(), mesh, policy)


def _policy_reader(
    config: Config, cache_folder: Path, task: Task, mesh: Mesh, policy: str
) -> Callable[[], tuple[Decoder, Params]]:
    """Returns a function that reads π_ref and its f32 parameters; it is trained here if none is given.

    Args:
        config, cache_folder, task, mesh: as in `prepare`.
        policy: its content; the function raises InputError where a given one has changed since.
    """
    folder = config.policy.folder or trained_policy(config, cache_folder, task, mesh)

    def read() -> tuple[Decoder, Params]:
        found = load_policy(config, folder, mesh)
        if policy_content(config, task) != policy:  # asked after reading, so that no change is missed
            valid = "valid: a folder that stays as it is, and another --workdir"
            raise InputError(f"config.policy.folder={folder!r}: has changed during this command; {valid}")
        return found

    return read


def learns_ensemble(config: Config) -> bool:
    """Tells whether any of the config's methods learns an ensemble, and so needs a backbone."""
    return any(METHODS[method].learns_ensemble for method in config.methods)


def _backbone(
    config: Config, folder: Path, task: Task, model: Decoder, params: Params, mesh: Mesh, policy: str
) -> tuple[Extractor, dict[str, Params]]:
    """Returns the frozen backbone, and the pretrained priors of the methods, by kind of posterior."""
    if config.backbone.kind == "encoder":
        return pair_encoder.load(config.encoder, task.decode, mesh), {}
    prepared = _BACKBONES[config.backbone.kind](config, folder, task, model, params, mesh, policy)
    return prepared.backbone, {kind: prepared.prior(kind) for kind in _priors(config)}


def recipes(config: Config, task: Task) -> list[Recipe]:
    """Describes backbone and priors, as far as they are cached parts; no model is read."""
    if config.backbone.kind == "encoder" or not learns_ensemble(config):
        return []
    backbone = _BACKBONES[config.backbone.kind].recipe_of(config, task, policy_content(config, task))
    return [backbone, *(prior_recipe(config, kind, backbone) for kind in _priors(config))]


def _priors(config: Config) -> list[str]:
    """Returns the kinds of posterior that have a pretrained prior in some method of the config."""
    return sorted({kind for method in config.methods if (kind := pretrained_prior(config, method))})


def _eval_set(config: Config, task: Task, sample: Callable) -> EvalSet:
    n = config.eval.num_prompts
    prompts = task.prompts[config.eval.split][:n]
    tokens, mask = task.encode_prompts(prompts)
    greedy, _ = greedy_responses(task, sample, tokens, mask, config.eval.batch_size)
    return EvalSet(prompts, tokens, mask, task.references[config.eval.split][:n], greedy)


def _heldout_pairs(config: Config, task: Task, sample: Callable, backbone: Extractor) -> HeldoutPairs:
    """Samples two responses of π_sft to each tuning prompt."""
    prompts = task.prompts["tuning"][: config.eval.num_pairs]
    tokens, mask = task.encode_prompts(prompts)
    out = sample(tokens, mask, jax.random.key(7))
    features = backbone(prompts, tokens, mask, out)
    texts = task.decode(*to_host((out.tokens, out.mask)))
    first, second = (tuple(row[i] for row in texts) for i in (0, 1))
    return HeldoutPairs(prompts, first, second, features)
