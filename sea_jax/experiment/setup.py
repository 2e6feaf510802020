"""Puts a run together: the parts of `train.Run` from a config, shared assets and a method."""

import functools
import inspect
from collections.abc import Callable

import jax
import optax
from ml_collections import FrozenConfigDict

from sea_jax import models
from sea_jax.actors.actor import Actor
from sea_jax.actors.sampler import new_version
from sea_jax.algorithm import UpdateSettings
from sea_jax.ensemble import experience, heads
from sea_jax.evaluate import Evaluator
from sea_jax.experiment.assets import Assets
from sea_jax.losses import DAP_LOSSES, LossTerm
from sea_jax.methods import METHODS
from sea_jax.oracles.labels import Labeller
from sea_jax.runtime.mesh import ensure_on_mesh
from sea_jax.runtime.sharding import with_gather
from sea_jax.state import init_state, policy_optimizer
from sea_jax.train import Run
from sea_jax.types import Array, Config, EnsembleState, Experience, Params


def make_run(config: Config, assets: Assets, method_name: str, replicate: int) -> Run:
    """Makes one method on one seed.

    Args:
        config: the method's.
        assets: shared by all runs.
        method_name: a row of `METHODS`.
        replicate: i; the run's seed is config.seed + i, its oracle's config.task.oracle_seed + i.
    """
    method, seed = METHODS[method_name], config.seed + replicate
    oracle = assets.oracle(config.task.oracle_seed + replicate)
    settings = make_settings(
        with_gather(assets.mesh, assets.model),
        FrozenConfigDict(config.train),
        FrozenConfigDict(config.ensemble),
        method.term(config) if method.term else None,
        tuple(method.learns),
    )
    draw = None
    if method.learns_ensemble:
        assert assets.backbone is not None
        draw = draw_ensemble(config, settings, assets.backbone.feature_width, assets.prior_heads)
    key = jax.random.key(seed)
    state = init_state(key, assets.initial_params(), settings.policy_optimizer, draw)
    state = ensure_on_mesh(assets.mesh, state)
    return Run(
        config=config,
        method=method,
        name=f"{method_name} seed {seed}",
        seed=seed,
        mesh=assets.mesh,
        actor=Actor(config, assets.task, assets.sampler, assets.mesh, method, assets.ref_params, seed),
        backbone=assets.backbone,
        oracle=oracle,
        labeller=Labeller(oracle, config.oracle.labels, config.oracle.flip_probability),
        settings=settings,
        ref_params=assets.ref_params,
        state=state,
        policy=new_version(state.policy.params),
    )


def make_evaluator(run: Run, assets: Assets) -> Evaluator:
    """Makes the evaluator of a run, with the oracle that labels its duels."""
    return Evaluator(
        config=run.config,
        task=assets.task,
        sampler=assets.sampler,
        oracle=run.oracle,
        backbone=assets.backbone,
        eval_set=assets.eval_set,
        pairs=assets.pairs,
    )


@functools.cache
def make_settings(
    model: models.Decoder,
    train: Config,
    ensemble: Config,
    term: LossTerm | None = None,
    learns: tuple[str, ...] = ("policy", "ensemble"),
) -> UpdateSettings:
    """Makes the static settings of `update`: one object for equal fields, so that jit compiles once.

    Args:
        model: the policy's module.
        train, ensemble: FrozenConfigDicts of these sections.
        term: the method's term of F.
        learns: the method's.
    """
    options = inspect.signature(DAP_LOSSES[train.dap]).parameters
    return UpdateSettings(
        model=model,
        policy_optimizer=policy_optimizer(train),
        ensemble_optimizer=optax.adam(ensemble.learning_rate),
        dap=train.dap,
        dap_options=tuple((name, train[name]) for name in options if name in train),
        term=term,
        micro_batch=train.micro_batch,
        token_chunk=train.token_chunk,
        learn_policy="policy" in learns,
        learn_ensemble="ensemble" in learns,
        ensemble_steps=ensemble.steps,
        ensemble_batch=ensemble.batch_size,
        regularization=ensemble.regularization,
        scale_by_data=ensemble.scale_by_data,
    )


def draw_ensemble(
    config: Config, settings: UpdateSettings, feature_width: int, prior_heads: Params | None
) -> Callable[[Array], tuple[EnsembleState, Experience]]:
    """Returns a function that draws Φ⁰ from the prior and makes an empty D_0.

    Args:
        config: the method's.
        settings: its ensemble_optimizer.
        feature_width: E.
        prior_heads: pretrained heads, leaves [P, ...], of which config.ensemble.prior='pretrained' draws K.
    """
    cfg = config.ensemble
    head = heads.Head(tuple(cfg.hidden), cfg.prior_scale)
    prior = prior_heads if cfg.prior == "pretrained" else None

    def draw(key: Array) -> tuple[EnsembleState, Experience]:
        state = heads.init(key, head, cfg.num_members, feature_width, settings.ensemble_optimizer, prior)
        return state, experience.init(cfg.capacity, feature_width)

    return draw
