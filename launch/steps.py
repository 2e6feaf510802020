"""Traces the programs of training on abstract arrays, so that no array is allocated.

`train.update`, the sampler of `generate.make_sampler` and the backbone's function are traced unchanged, on
shapes and shardings instead of arrays.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sea_jax import models, tasks, train
from sea_jax.ensemble import features, hidden_states, pair_encoder
from sea_jax.errors import InputError
from sea_jax.experiment import reward_scorer
from sea_jax.experiment.setup import draw_ensemble, make_settings
from sea_jax.experiment.validate import validate_fields
from sea_jax.methods import METHODS
from sea_jax.methods.method import Samples
from sea_jax.models import convert, sizes
from sea_jax.models.generate import Responses, make_sampler
from sea_jax.models.params import cast_matrices
from sea_jax.oracles import reward_model
from sea_jax.runtime.mesh import AXES, batch_shards
from sea_jax.runtime.sharding import checked_specs, with_gather
from sea_jax.state import init_state
from sea_jax.types import BATCH_AXES, Config, PreferenceBatch, PromptBatch, SeaState

NAMES = (
    "train", "generate", "pool", "score", "features", "oracle", "improve", "improve_generate",
    "improve_features",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
        name: one of NAMES.
        traced: the trace of the jitted function on texts of the maximum length, to lower and compile.
        reads: groups of `Experiment.resident` among the arguments.
        calls: calls per training step.
        while_turns: maximum of iterations of a loop whose end depends on data.
        usual: the trace on texts of the policy's lengths, to count operations; None: the same as `traced`.
        shared_by: number of devices that share the work, which the others repeat; 0: all devices.
    """

    name: str
    traced: Any
    reads: tuple[str, ...]
    calls: int = 1
    while_turns: int = 1
    usual: Any = None
    shared_by: int = 0


class Experiment:
    """A config's models, mesh and abstract state.

    Attributes:
        resident: the arrays that stay on the devices during all programs, by name.

    Raises:
        InputError: the mesh divides a batch or a parameter unevenly, or the shape of a model is unknown.
    """

    def __init__(self, config: Config, devices: list[Any]):
        self.config = config
        validate_fields(config)
        sizes = tuple(config.mesh[axis] for axis in AXES)
        if math.prod(sizes) != len(devices):
            raise InputError(
                f"config.mesh={config.mesh.to_dict()}: valid is a product of {len(devices)}, the devices"
            )
        auto = (AxisType.Auto,) * len(AXES)
        self.mesh = jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)
        self.method = METHODS[config.methods[0]]
        self.num_responses = self.method.num_responses(config)
        self.num_prompts = config.train.batch_size * self.method.pool_factor(config)
        task = config.task
        spec = tasks.find(task.name)
        self.prompt_length = task.get("prompt_length", spec.prompt_length)
        self.response_length = task.get("response_length", spec.response_length)
        self.policy = policy_shape(config).build()
        self._check_batches()
        self.settings = make_settings(with_gather(self.mesh, self.policy), config, self.method)
        self.params = self._sharded_params(self.policy)
        self.ref_params = _cast(self.params, self.policy.config.dtype)
        self.backbone, self.backbone_params, self.feature_width = self._backbone()
        self.state, self.oracle = self._state(), self._reward_model()
        self.resident = {
            "parameters": self.state.policy.params,
            "optimizer": self.state.policy.opt_state,
            "reference": self.ref_params,
            "ensemble": (self.state.ensemble, self.state.experience),
            "backbone": self._own_backbone() if self.method.learns_ensemble else (),
            "oracle": self.oracle[1],
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of this experiment's programs."""
        left_out = set()
        if self.oracle[0] is None:
            left_out.add("oracle")
        if self.method.prompts.samples(self.config) is None:
            left_out.add("pool")
        if self.scored is None:
            left_out.add("score")
        if not self.method.learns_ensemble:
            left_out |= {"features", "improve_features"}
        if self.method.improvement is None or self.method.improvement.samples(self.config) is None:
            left_out |= {"improve", "improve_generate", "improve_features"}
        return tuple(name for name in NAMES if name not in left_out)

    def step(self, name: str) -> Step:
        """Traces the program of this name, one of NAMES."""
        made = dict(
            train=self._train, generate=self._generate, pool=self._pool, score=self._score,
            features=self._features, oracle=self._oracle, improve=self._improve,
            improve_generate=self._improve_generate, improve_features=self._improve_features,
        )  # fmt: skip
        return made[name]()

    def _train(self) -> Step:
        B, T = self.config.train.batch_size, self.response_length
        pair: Any = lambda *shape, dtype: jax.ShapeDtypeStruct((B, *shape), dtype)  # noqa: E731
        batch = PreferenceBatch(
            pair(self.prompt_length, dtype=jnp.int32), pair(self.prompt_length, dtype=bool),
            pair(2, T, dtype=jnp.int32), pair(2, T, dtype=bool),
            pair(2, self.feature_width, dtype=jnp.float32) if self.method.learns_ensemble else None,
            pair(dtype=bool), pair(dtype=jnp.float32),
        )  # fmt: skip
        if self.settings.term is not None:
            X = self.settings.term.num_extra
            extra = dict(extra_tokens=pair(X, T, dtype=jnp.int32), extra_mask=pair(X, T, dtype=bool))
            batch = batch._replace(**extra)
        traced = train.update.trace(self.settings, self.state, self.ref_params, self._split(batch))
        calls = 1
        if (improvement := self.method.improvement) and improvement.samples(self.config) is None:
            calls += improvement.updates_per_step(self.config)  # updates on earlier labels
        return Step("train", traced, ("parameters", "optimizer", "reference", "ensemble"), calls)

    def _generate(self) -> Step:
        return self._sampling("generate", self.num_prompts, self.num_responses, self.config.train.temperature)

    def _pool(self) -> Step:
        """Traces the sampling for the pool from which the method chooses its prompts."""
        samples = self.method.prompts.samples(self.config)
        assert samples is not None
        return self._sampling("pool", *samples)

    def _sampling(
        self, name: str, num_prompts: int, num_responses: int, temperature: float, calls: int = 1
    ) -> Step:
        T, at_once = self.response_length, self.config.sampler.micro_batch
        sample = make_sampler(self.policy, num_responses, T, temperature, 0, 0, self.mesh, at_once)
        prompts = jax.ShapeDtypeStruct((num_prompts, self.prompt_length), jnp.int32)
        inputs = self._split((prompts, prompts.update(dtype=jnp.dtype(bool))))
        key = self._replicated(jax.eval_shape(lambda: jax.random.key(0)))
        traced = sample.trace(self.params, *inputs, key)
        return Step(name, traced, ("parameters",), calls, while_turns=T - 1)

    def _score(self) -> Step:
        """Returns the scorer's program for all responses of a step."""
        return Step("score", self.scored, ("parameters", "reference"))

    @functools.cached_property
    def scored(self) -> Any:
        """Returns the trace of the scorer's program; None if the method has no scorer."""
        if self.method.scorer is None:
            return None
        prompts, responses = self._texts_of(self.num_prompts, self.num_responses)
        return self.method.scorer.trace(self, PromptBatch(*prompts), *responses)

    def _features(self) -> Step:
        return self._features_of("features", self.num_prompts, self.num_responses, 1)

    def _features_of(self, name: str, B: int, M: int, times: int) -> Step:
        """Traces the features of B · M responses, `times` a step; for an encoder, one batch of them."""
        cfg = self.config
        shards = batch_shards(self.mesh)  # the parameters of a ranker and of an encoder are replicated
        if isinstance(self.backbone, models.Encoder):
            size, states = self._rows(cfg.encoder), pair_encoder.states_fn(self.backbone, (0, 1))
            most = (cfg.encoder.source_length, cfg.encoder.candidate_length)
            usual = map(min, most, (self.prompt_length, self.response_length))
            traced, usual = (
                states.trace(self.backbone_params, *self._texts(size, _round_up(n, pair_encoder.MULTIPLE)))
                for n in (sum(most), sum(usual))
            )
            calls = -(-B * M // size)
            return Step(name, traced, ("backbone",), times * calls, usual=usual, shared_by=shards)
        prompts, responses = self._texts_of(B, M)
        if cfg.backbone.kind == "policy":
            extract = hidden_states.extract_fn(self.backbone, cfg.backbone.pool, 0, cfg.sampler.micro_batch)
            traced = extract.trace(self.backbone_params, *prompts, *responses)
            return Step(name, traced, ("backbone", "reference"), times)
        extract = features.extract_fn(self.backbone, self.pooling)
        traced = extract.trace(self.backbone_params, *prompts, *responses)
        return Step(name, traced, ("backbone",), times, shared_by=shards)

    def _improve(self) -> Step:
        """Traces an update between labels."""
        samples, calls = self._of_improvement()
        prompts, responses = self._texts_of(samples.num_prompts, samples.num_responses)
        rewards = jax.ShapeDtypeStruct((samples.num_prompts, samples.num_responses), jnp.float32)
        logprobs = responses[0].update(dtype=jnp.dtype("float32"))
        inputs = PromptBatch(*prompts), Responses(*responses, logprobs), self._split(rewards)
        traced = self.method.improvement.trace(self, *inputs)  # pyright: ignore[reportOptionalMemberAccess]
        return Step("improve", traced, ("parameters", "optimizer", "reference"), calls)

    def _improve_generate(self) -> Step:
        samples, calls = self._of_improvement()
        return self._sampling("improve_generate", *samples, calls)

    def _improve_features(self) -> Step:
        samples, calls = self._of_improvement()
        return self._features_of("improve_features", samples.num_prompts, samples.num_responses, calls)

    def _of_improvement(self) -> tuple[Samples, int]:
        """Returns what an update between labels samples, and the number of updates in a step."""
        improvement = self.method.improvement
        assert improvement is not None
        samples = improvement.samples(self.config)
        assert samples is not None
        return samples, improvement.updates_per_step(self.config)

    def _texts_of(self, B: int, M: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Returns tokens and mask of B prompts [B, L], and of M responses to each [B, M, T]."""
        shapes = (B, self.prompt_length), (B, M, self.response_length)
        pair = lambda x: (x, x.update(dtype=jnp.dtype(bool)))  # noqa: E731
        prompts, responses = (self._split(pair(jax.ShapeDtypeStruct(x, jnp.int32))) for x in shapes)
        return prompts, responses

    def _oracle(self) -> Step:
        """Traces one batch of the reward model on texts of the policy's length.

        The calls are those for a step's labels after the burn-in; config.eval.online adds one text per label.
        """
        model, params = self.oracle
        gamma = self.config.sea.gamma if self.method.synthetic else 1.0
        size, num_texts = self._rows(self.config.oracle), 2 * math.ceil(gamma * self.config.train.batch_size)
        length = reward_model.bucket(self.prompt_length + self.response_length, model.config.max_length)
        traced = reward_scorer.score_fn(model).trace(params, *self._texts(size, length))
        return Step("oracle", traced, ("oracle",), calls=-(-num_texts // size))

    def _rows(self, config: Config) -> int:
        """Returns the batch size of the encoder or of the oracle, rounded up as in their `load`."""
        return _round_up(config.batch_size, batch_shards(self.mesh))

    def _texts(self, size: int, length: int) -> Any:
        tokens = jax.ShapeDtypeStruct((size, length), jnp.int32)
        return self._split((tokens, tokens.update(dtype=jnp.dtype(bool))))

    def _check_batches(self) -> None:
        """Checks that the devices divide each batch evenly; an uneven one would be replicated."""
        shards, B = batch_shards(self.mesh), self.config.train.batch_size
        fields = {
            "train.batch_size": B,
            "train.micro_batch": self.config.train.micro_batch or B,
            "sampler.micro_batch": self.config.sampler.micro_batch or B,
        }
        for name, size in fields.items():
            if size % shards or B % size:
                raise InputError(
                    f"config.{name}={size}: valid is a multiple of the mesh's data · fsdp = {shards} that "
                    f"divides train.batch_size={B}"
                )

    def _sharded_params(self, model: Any) -> Any:
        shapes = convert.shapes(model)
        specs = checked_specs(self.mesh, model, shapes)
        params = {
            path: x.update(sharding=NamedSharding(self.mesh, specs[path])) for path, x in shapes.items()
        }
        return unflatten_dict(params, sep="/")

    def _reward_model(self) -> tuple[Any, Any]:
        """Returns the reward model and its parameters, placed as by `make_scorer`; else None and ()."""
        cfg = self.config.oracle
        if cfg.kind != "reward_model":
            return None, ()
        dtype = jnp.dtype(cfg.dtype).type
        model = shape_of("oracle.folder", cfg.folder, dtype=dtype).build()
        return with_gather(self.mesh, model), _cast(self._sharded_params(model), dtype)

    def _state(self) -> SeaState:
        """Returns the state of `train.Run`: moments sharded as their parameters, the rest replicated."""
        tx, draw = self.settings.policy_optimizer, None
        if self.settings.posterior is not None:
            draw = draw_ensemble(self.config, self.method, self.settings.posterior, self.feature_width, {})
        state: SeaState = jax.eval_shape(
            lambda key, params: init_state(key, params, tx, draw),
            jax.eval_shape(lambda: jax.random.key(0)),
            self.params,
        )
        whole = self._replicated(state)
        moments = optax.tree.map_params(
            tx, lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
            state.policy.opt_state, self.params, transform_non_params=self._replicated,
        )  # fmt: skip
        return whole._replace(policy=whole.policy._replace(params=self.params, opt_state=moments))

    def _backbone(self) -> tuple[Any, Any, int]:
        """Returns the frozen extractor's model, its replicated parameters and the width of its features."""
        cfg, self.pooling = self.config, None
        if cfg.backbone.kind == "policy":
            return self._hidden_states()
        if cfg.backbone.kind == "encoder":
            dtype = jnp.dtype(cfg.encoder.dtype).type
            encoder = shape_of("encoder.folder", cfg.encoder.folder, dtype=dtype).build()
            params = self._replicated(unflatten_dict(convert.shapes(encoder), sep="/"))
            return encoder, _cast(params, dtype), 2 * encoder.config.width
        width, vocab = cfg.backbone.pooled_width, self.policy.config.vocab_size
        self.pooling = pooling = features.GatedPooling(width, vocab, cfg.backbone.gate_hidden)
        states = jnp.zeros((2, self.policy.config.width))
        token = (jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.ones(1, bool))
        pooled = jax.eval_shape(lambda: pooling.init(jax.random.key(0), states, *token))["params"]
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        params = {
            "decoder": unflatten_dict(convert.shapes(self.policy), sep="/"), "pooling": pooled,
            "projection": array(width, cfg.backbone.width), "mean": array(cfg.backbone.width),
        }  # fmt: skip
        return self.policy, self._replicated(params), cfg.backbone.width

    def _hidden_states(self) -> tuple[Any, Any, int]:
        """Returns the policy's lower blocks, their parameters sharded as π_ref's, and the features' width."""
        cfg, shape = self.config.backbone, self.policy.config
        layer = hidden_states.middle(shape.num_layers, cfg.layer)
        layers = jax.tree.map(lambda x: x.update(shape=(layer, *x.shape[1:])), self.ref_params["layers"])
        shared = {name: self.ref_params[name] for name in ("embed", "final_norm")}
        pooled, width = hidden_states.feature_widths(shape.width, cfg.pool, cfg.scaling, cfg.width)
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        scaling = {"mean": array(pooled), "scale": array(pooled)}
        if cfg.scaling != "standard":
            scaling["projection"] = array(pooled, width)
        params = self._replicated(scaling) | {"decoder": shared | {"layers": layers}}
        return hidden_states.lower_blocks(self.mesh, self.policy, layer), params, width

    def _own_backbone(self) -> Any:
        """Returns the backbone's parameters that are not π_ref's own arrays."""
        if self.config.backbone.kind != "policy":
            return self.backbone_params
        scaling = {name: x for name, x in self.backbone_params.items() if name != "decoder"}
        whole = self.backbone.config.num_layers == self.policy.config.num_layers
        return scaling if whole else (scaling, self.backbone_params["decoder"]["layers"])

    def _split(self, tree: Any) -> Any:
        """Shards the leading axis of each array as `mesh.shard_batch` does."""
        shards = batch_shards(self.mesh)
        spec = lambda x: PartitionSpec(BATCH_AXES) if x.shape[0] % shards == 0 else PartitionSpec()  # noqa: E731
        put = lambda x: x.update(sharding=NamedSharding(self.mesh, spec(x)))  # noqa: E731
        return jax.tree.map(put, tree)

    def _replicated(self, tree: Any) -> Any:
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)


def _cast(params: Any, dtype: Any) -> Any:
    """Applies `cast_matrices` to abstract parameters and keeps their shardings."""
    cast = jax.eval_shape(lambda p: cast_matrices(p, dtype), params)
    return jax.tree.map(lambda x, p: x.update(sharding=p.sharding), cast, params)


def policy_shape(config: Config) -> Any:
    """Returns the policy's shape, by its folder or hub name, else by the other fields of config.policy."""
    policy = config.policy
    compute: dict[str, Any] = dict(
        dtype=jnp.dtype(policy.dtype).type, remat=policy.remat, trained_layers=policy.trained_layers
    )
    if policy.folder:
        return shape_of("policy.folder", policy.folder, **compute)
    vocab_size = tasks.find(config.task.name).vocab_size
    if vocab_size is None:
        raise InputError("config.policy.folder='': valid is a folder or a hub name, for a task of real text")
    return models.PythiaConfig(
        vocab_size=vocab_size, num_layers=policy.num_layers, width=policy.width,
        num_heads=policy.num_heads, mlp_width=policy.mlp_width, **compute,
    )  # fmt: skip


def shape_of(field: str, name: str, **overrides: Any) -> Any:
    """Returns a model's shape, by a local folder's config.json or by its name, without a download."""
    try:
        if Path(name).is_dir():
            return models.read_config(Path(name), **overrides)
        return sizes.shape(name, **overrides)
    except InputError as error:
        raise InputError(f"config.{field}={name!r}: {error}") from None


def device_bytes(tree: Any) -> int:
    """Returns the bytes of abstract arrays on one device."""

    def of(x: Any) -> int:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 8
        shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        return math.prod(shape) * np.dtype(x.dtype).itemsize

    return sum(of(x) for x in jax.tree.leaves(tree))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
