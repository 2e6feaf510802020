"""Puts a run together: the parts of `train.Run` from a config, shared assets and a method."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from sea_jax import models
from sea_jax.actors.actor import Actor
from sea_jax.actors.sampler import new_version
from sea_jax.algorithm import UpdateSettings
from sea_jax.ensemble import experience, heads
from sea_jax.ensemble.linear import LinearPosterior
from sea_jax.ensemble.posterior import HeadEnsemble, Posterior
from sea_jax.evaluate import Evaluator, log_ratio
from sea_jax.experiment.assets import Assets
from sea_jax.labels.journal import Journal
from sea_jax.losses import DAP_LOSSES
from sea_jax.methods import METHODS, Method
from sea_jax.methods.method import posterior_kind
from sea_jax.oracles.labeller import Labeller
from sea_jax.runtime.mesh import broadcast_from_main, ensure_on_mesh
from sea_jax.runtime.sharding import with_gather
from sea_jax.state import init_state, policy_optimizer
from sea_jax.train import Run
from sea_jax.types import Array, Config, EnsembleState, Experience, Params


def make_run(
    config: Config, assets: Assets, method_name: str, replicate: int, journal: Journal | None = None,
    labelled_by: Any = None,
) -> Run:  # fmt: skip
    """Makes one method on one seed.

    Args:
        config: the method's.
        assets: shared by all runs.
        method_name: a row of `METHODS`.
        replicate: i; the run's seed is config.seed + i, its oracle's config.task.oracle_seed + i.
        journal: gets the labels; None: they are in memory only.
        labelled_by: the oracle that labels the duels; None: the one that evaluates.
    """
    method, seed = METHODS[method_name], config.seed + replicate
    oracle = assets.oracle(config.task.oracle_seed + replicate)
    settings = make_settings(with_gather(assets.mesh, assets.model), config, method)
    draw = None
    if settings.posterior is not None:
        assert assets.backbone is not None
        width = assets.backbone.feature_width
        draw = draw_ensemble(config, method, settings.posterior, width, assets.priors)
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
        labeller=Labeller(
            oracle if labelled_by is None else labelled_by,
            config.oracle.labels,
            config.oracle.flip_probability,
            journal=journal,
            broadcast=broadcast_from_main,
        ),
        settings=settings,
        ref_params=assets.ref_params,
        initial_params=assets.initial_params,
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
        log_ratio=functools.partial(
            log_ratio, run.settings.model, run.config.train.token_chunk, run.ref_params
        ),
    )


def make_settings(model: models.Decoder, config: Config, method: Method) -> UpdateSettings:
    """Makes the static settings of `update`. Runs with equal settings share one compiled program.

    Args:
        model: the policy's module.
        config: the method's.
        method: a row of `METHODS`.
    """
    train = config.train
    own = method.improvement.optimizer(config) if method.improvement else None
    options = inspect.signature(DAP_LOSSES[train.dap]).parameters
    return UpdateSettings(
        model=model,
        policy_optimizer=own or policy_optimizer(train),
        dap=train.dap,
        dap_options=tuple((name, train[name]) for name in options if name in train),
        term=method.term(config) if method.term else None,
        micro_batch=train.micro_batch,
        token_chunk=train.token_chunk,
        learn_policy="policy" in method.learns,
        posterior=make_posterior(config, method) if method.learns_ensemble else None,
    )


# One object for equal rates: runs whose settings are equal share one compiled program.
_adam = functools.cache(optax.adam)


def make_posterior(config: Config, method: Method) -> Posterior:
    """Makes the posterior of a method."""
    ensemble = config.ensemble
    if posterior_kind(config, method) == "linear":
        return LinearPosterior(
            ensemble.num_draws, ensemble.prior_scale, ensemble.sharpness, ensemble.newton_steps
        )
    return HeadEnsemble(
        head=heads.Head(tuple(ensemble.hidden), ensemble.prior_scale),
        num_members=ensemble.num_members,
        optimizer=_adam(ensemble.learning_rate),
        num_steps=ensemble.steps,
        batch_size=ensemble.batch_size,
        regularization=ensemble.regularization,
        scale_by_data=ensemble.scale_by_data,
    )


def draw_ensemble(
    config: Config, method: Method, posterior: Posterior, feature_width: int, priors: Mapping[str, Params]
) -> Callable[[Array], tuple[EnsembleState, Experience]]:
    """Returns a function that draws Φ⁰ from the prior and makes an empty D_0.

    Args:
        config: the method's.
        method: a row of `METHODS`.
        posterior: initialises Φ⁰.
        feature_width: E.
        priors: pretrained parameters by kind of posterior, which config.ensemble.prior='pretrained' reads.
    """
    pretrained = config.ensemble.prior == "pretrained"
    prior = priors.get(posterior_kind(config, method)) if pretrained else None

    def draw(key: Array) -> tuple[EnsembleState, Experience]:
        state = posterior.init(key, feature_width, prior)
        return state, experience.init(config.ensemble.capacity, feature_width)

    return draw
