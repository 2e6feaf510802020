"""The programs that training runs, traced on abstract arrays: nothing is allocated.

`train.update`, the sampler of `generate.make_sampler` and the backbone's own function are traced as they are, with
shapes and shardings in the place of arrays.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from sea_jax import models, train
from sea_jax.ensemble import features, pair_encoder
from sea_jax.errors import InputError
from sea_jax.methods import METHODS
from sea_jax.models import convert, sizes
from sea_jax.models.generate import make_sampler
from sea_jax.models.params import cast_matrices
from sea_jax.runtime.mesh import AXES, BATCH, batch_shards, partition_specs
from sea_jax.state import init_state
from sea_jax.tasks import mini_tldr
from sea_jax.types import PreferenceBatch, SeaState

NAMES = ("train", "generate", "features")


@dataclasses.dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
        name: a row of NAMES.
        traced: of jit, to lower and compile.
        reads: groups of `Plan.resident` among its arguments.
        calls: how often it runs in a training step.
        model_flops: by the rule of 2 N a token forward and 4 N backward, of all devices and calls: no attention,
            nothing computed again.
    """

    name: str
    traced: Any
    reads: tuple[str, ...]
    calls: int
    model_flops: float


class Experiment:
    """A config's models, mesh and abstract state.

    Raises:
        InputError: where the mesh divides a batch or a parameter unevenly; on a policy or encoder whose shape
            is not known.
    """

    def __init__(self, config: Any, devices: list[Any], mesh: dict[str, int]):
        self.config = config
        if math.prod(mesh.values()) != len(devices):
            raise InputError(f"--mesh={mesh}: valid is a product of {len(devices)}, the topology's devices")
        self.mesh = jax.make_mesh(
            tuple(mesh[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
        )
        self.method = METHODS[config.methods[0]]
        task = config.task
        self.prompt_length = task.get("prompt_length", mini_tldr.PROMPT_LENGTH)
        self.response_length = task.get("response_length", mini_tldr.RESPONSE_LENGTH)
        self.policy = policy_shape(config).build()
        self._check_batches()
        self.learner, self.head = train.make_learner(
            self.policy, FrozenConfigDict(config.train), FrozenConfigDict(config.ensemble), self.method
        )
        self.params = self._sharded_params(jnp.float32)
        self.backbone, self.backbone_params, self.feature_width = self._backbone()
        self.state = self._state()
        ref_dtype = jnp.dtype(config.train.get("ref_dtype", "float32"))
        self.ref_params = self._sharded_params(ref_dtype)
        # What lies on the devices all the time, whichever program runs.
        self.resident = {
            "parameters": self.state.policy.params,
            "optimizer": self.state.policy.opt_state,
            "reference": self.ref_params,
            "ensemble": (self.state.ensemble, self.state.experience),
            "backbone": self.backbone_params,
        }

    def step(self, name: str) -> Step:
        """Traces one of NAMES."""
        return {"train": self._train, "generate": self._generate, "features": self._features}[name]()

    def _train(self) -> Step:
        cfg, B, T = self.config.train, self.config.train.batch_size, self.response_length
        pair = lambda *shape, dtype: jax.ShapeDtypeStruct((B, *shape), dtype)  # noqa: E731
        batch = PreferenceBatch(
            pair(self.prompt_length, dtype=jnp.int32), pair(self.prompt_length, dtype=bool),
            pair(2, T, dtype=jnp.int32), pair(2, T, dtype=bool),
            pair(2, self.feature_width, dtype=jnp.float32),
            pair(dtype=bool), pair(dtype=jnp.float32),
        )  # fmt: skip
        traced = train.update.trace(self.learner, self.state, self.ref_params, self._split(batch))
        body, head = self._matrix_params()
        tokens, predicted = cfg.batch_size * (self.prompt_length + 2 * T), cfg.batch_size * 2 * T
        flops = (6 + 2) * (body * tokens + head * predicted)  # θ forward and backward, π_ref forward
        return Step("train", traced, ("parameters", "optimizer", "reference", "ensemble"), 1, flops)

    def _generate(self) -> Step:
        cfg, B, T = self.config, self.config.train.batch_size, self.response_length
        M = cfg.sea.num_responses if self.method.active else 2
        sample = make_sampler(
            self.policy, M, T, cfg.train.temperature, 0, 0, self.mesh, cfg.sampler.micro_batch
        )  # fmt: skip
        key = jax.eval_shape(lambda: jax.random.key(0))
        prompts = jax.ShapeDtypeStruct((B, self.prompt_length), jnp.int32)
        inputs = self._split((prompts, prompts.update(dtype=jnp.dtype(bool))))
        traced = sample.trace(self.params, *inputs, self._replicated(key))
        body, head = self._matrix_params()
        flops = 2 * (body * B * (self.prompt_length + M * T) + head * B * (1 + M * T))
        return Step("generate", traced, ("parameters",), 1, flops)

    def _features(self) -> Step:
        """Of all responses of a step; of an encoder one pass, which runs `calls` times."""
        cfg, B, T = self.config, self.config.train.batch_size, self.response_length
        M = cfg.sea.num_responses if self.method.active else 2
        if isinstance(self.backbone, models.Encoder):
            size = _round_up(cfg.encoder.batch_size, batch_shards(self.mesh))
            length = _round_up(cfg.encoder.source_length + cfg.encoder.candidate_length, pair_encoder.MULTIPLE)
            tokens = jax.ShapeDtypeStruct((size, length), jnp.int32)
            inputs = self._split((tokens, tokens.update(dtype=jnp.dtype(bool))))
            traced = pair_encoder.states_fn(self.backbone, (0, 1)).trace(self.backbone_params, *inputs)
            calls = -(-B * M // size)
            body = _num_params(self.backbone_params) - math.prod(self._embedding(self.backbone_params).shape)
            return Step("features", traced, ("backbone",), calls, 2 * body * size * length * calls)
        prompts = jax.ShapeDtypeStruct((B, self.prompt_length), jnp.int32)
        responses = jax.ShapeDtypeStruct((B, M, T), jnp.int32)
        inputs = [(x, x.update(dtype=jnp.dtype(bool))) for x in (prompts, responses)]
        traced = features.extract_fn(self.backbone, self.pooling).trace(
            self.backbone_params, *self._split(inputs[0] + inputs[1])
        )
        body, head = self._matrix_params()
        flops = 2 * (body * B * (self.prompt_length + M * T) + head * B * M * T)
        return Step("features", traced, ("backbone",), 1, flops)

    def _check_batches(self) -> None:
        """A part of a batch that the devices cannot share evenly would lie whole on each."""
        shards, B = batch_shards(self.mesh), self.config.train.batch_size
        fields = {
            "train.batch_size": B, "train.micro_batch": self.config.train.micro_batch or B,
            "sampler.micro_batch": self.config.sampler.micro_batch or B,
        }  # fmt: skip
        for name, size in fields.items():
            if size % shards or B % size:
                raise InputError(
                    f"config.{name}={size}: valid is a multiple of the mesh's data · fsdp = {shards} that "
                    f"divides train.batch_size={B}"
                )

    def _sharded_params(self, dtype: Any) -> Any:
        shapes = convert.shapes(self.policy)
        for path, spec in (specs := partition_specs(self.policy, shapes)).items():
            for size, axis in zip(shapes[path].shape, spec, strict=True):
                if axis and size % self.mesh.shape[axis]:
                    raise InputError(
                        f"mesh {axis}={self.mesh.shape[axis]}: valid is a divisor of {size}, an axis of "
                        f"parameter {path} {shapes[path].shape}"
                    )
        params = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, specs[path]))
            for path, x in shapes.items()
        }
        return jax.eval_shape(lambda p: cast_matrices(p, dtype), unflatten_dict(params, sep="/"))

    def _state(self) -> SeaState:
        """As `train.Run` makes it: moments lie as their parameters do, all else whole on every device."""
        cfg, tx = self.config, self.learner.policy_optimizer
        state: SeaState = jax.eval_shape(
            lambda key, params: init_state(
                key, params, tx, self.head, self.learner.ensemble_optimizer,
                num_members=cfg.ensemble.num_members, feature_width=self.feature_width,
                capacity=cfg.ensemble.capacity,
            ),
            jax.eval_shape(lambda: jax.random.key(0)), self.params,
        )  # fmt: skip
        whole = self._replicated(state)
        moments = optax.tree.map_params(
            tx, lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
            state.policy.opt_state, self.params, transform_non_params=self._replicated,
        )  # fmt: skip
        return whole._replace(policy=whole.policy._replace(params=self.params, opt_state=moments))

    def _backbone(self) -> tuple[Any, Any, int]:
        """The frozen extractor's model, its parameters whole on every device, its features' width."""
        cfg, self.pooling = self.config, None
        if cfg.backbone.get("kind", "ranker") == "encoder":
            encoder = sizes_or_folder("encoder.folder", cfg.encoder.folder).build()
            params = unflatten_dict(convert.shapes(encoder), sep="/")
            return encoder, self._replicated(params), 2 * encoder.config.width
        width, vocab = cfg.backbone.pooled_width, self.policy.config.vocab_size
        self.pooling = features.GatedPooling(width, vocab, cfg.backbone.gate_hidden)
        states = jnp.zeros((2, self.policy.config.width))
        token = (jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.ones(1, bool))
        pooling = jax.eval_shape(lambda: self.pooling.init(jax.random.key(0), states, *token))["params"]
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        params = {
            "decoder": unflatten_dict(convert.shapes(self.policy), sep="/"), "pooling": pooling,
            "projection": array(width, cfg.backbone.width), "mean": array(cfg.backbone.width),
        }  # fmt: skip
        return self.policy, self._replicated(params), cfg.backbone.width

    def _split(self, tree: Any) -> Any:
        """As `mesh.split`."""
        shards = batch_shards(self.mesh)
        spec = lambda x: PartitionSpec(BATCH) if x.shape[0] % shards == 0 else PartitionSpec()  # noqa: E731
        put = lambda x: x.update(sharding=NamedSharding(self.mesh, spec(x)))  # noqa: E731
        return jax.tree.map(put, tree)

    def _replicated(self, tree: Any) -> Any:
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)

    def _matrix_params(self) -> tuple[int, int]:
        """Parameters that every token meets, and those of the head; an embedding only looks up."""
        flat, cfg = convert.shapes(self.policy), self.policy.config
        head = cfg.vocab_size * cfg.width
        return sum(math.prod(x.shape) for x in flat.values()) - head * (1 if cfg.tied else 2), head

    @staticmethod
    def _embedding(params: Any) -> Any:
        return params["embed"]["embedding"]


def policy_shape(config: Any) -> Any:
    """The policy's shape by config.policy: its size by name, its folder or hub name, or the fields beside them."""
    policy = config.policy
    compute = dict(dtype=jnp.dtype(policy.get("dtype", "float32")).type, remat=policy.get("remat", "none"))
    if policy.get("size", ""):
        return sizes.shape(policy.size, **compute)
    if policy.folder:
        return sizes_or_folder("policy.folder", policy.folder, **compute)
    return models.PythiaConfig(
        vocab_size=mini_tldr.VOCAB_SIZE, num_layers=policy.num_layers, width=policy.width,
        num_heads=policy.num_heads, mlp_width=policy.mlp_width, **compute,
    )  # fmt: skip


def sizes_or_folder(field: str, name: str, **overrides: Any) -> Any:
    """The shape that a local folder's config.json tells, or that the name does; nothing is downloaded."""
    if Path(name).is_dir():
        return convert.read_config(Path(name), **overrides)
    try:
        return sizes.shape(name, **overrides)
    except InputError as error:
        raise InputError(f"config.{field}={name!r}: no folder; {error}") from None


def device_bytes(tree: Any) -> int:
    """Of abstract arrays, what one device holds."""

    def of(x: Any) -> int:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 8
        shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        return math.prod(shape) * np.dtype(x.dtype).itemsize

    return sum(of(x) for x in jax.tree.leaves(tree))


def _num_params(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
