"""Measures a posterior's accuracy on held-out pairs by number of labels, for several kinds of features.

    python -m benchmarks.feature_accuracy --config=configs/quickstart.py --workdir=runs/quickstart
    python -m benchmarks.feature_accuracy --config=configs/tldr.py --workdir=runs/features \
        --config.mesh.fsdp=1 --config.task.name=local --config.task.path=pairs.jsonl \
        --config.policy.folder=<folder> --layers=8,16,24

On an embedded task a pair is two samples of the starting policy at the training temperature, labelled by the
hidden reward; ties are left out. On text it is a row of a preference set (columns prompt, chosen, rejected);
held-out pairs are of other prompts. The features are:

    ranker           of the frozen backbone that is trained on the task's family of rewards
    layer/pool       hidden states of the starting policy, scaled on all training pairs without their labels
    reward basis     quantities on which the hidden reward depends: what no method sees, and an upper bound
                     where the reward is linear in them

and the posteriors: `linear`, the mean of `ensemble.linear` under the random prior; `linear, prior` with the
prior that is fitted to the task's family of rewards on the training pairs; `mlp`, the ensemble of Eq. 8 from
random heads after STEPS optimizer steps, by which it is close to convergence. Means and standard errors are
over draws of the training pairs; on an embedded task each draw also has another hidden reward.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from benchmarks.samples import normalised
from sea_jax import evaluate, tasks
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.config.flags import fail
from sea_jax.ensemble import experience, heads, hidden_states
from sea_jax.ensemble.hidden_states import HiddenStates
from sea_jax.ensemble.linear import LinearPosterior
from sea_jax.errors import InputError
from sea_jax.experiment import assets
from sea_jax.models import Decoder, Responses
from sea_jax.pretraining.backbone import SEED_OFFSET, linear_prior
from sea_jax.pretraining.hidden_states import fit_scaling
from sea_jax.pretraining.policy import load_policy
from sea_jax.runtime.mesh import make_mesh, to_host
from sea_jax.tasks import preferences
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import load_tokenizer
from sea_jax.types import Config, Params

_CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Work directory that holds the trained models.")
_SEEDS = flags.DEFINE_list("oracle_seeds", ["100", "101", "102", "103", "104"], "Seeds of hidden rewards.")
_DRAWS = flags.DEFINE_integer("draws", 5, "Draws of the training pairs.")
_SPLIT = flags.DEFINE_string("split", "heldout", "Split that an embedded task's held-out prompts come from.")
_TRAIN = flags.DEFINE_integer("train", 1000, "Pairs that the training pairs are drawn from.")
_TEST = flags.DEFINE_integer("test", 1000, "Held-out pairs, at most.")
_LABELS = flags.DEFINE_list("labels", ["16", "32", "64", "128", "256", "512"], "Numbers of labels.")
_LAYERS = flags.DEFINE_list("layers", ["-1"], "Layers of the states; -1: half.")
_POOLS = flags.DEFINE_list("pools", ["last", "mean", "both"], "As config.backbone.pool.")
_EOS = flags.DEFINE_list("read_eos", ["False"], "As config.backbone.read_eos.")
_SCALINGS = flags.DEFINE_list("scalings", ["pca"], "As config.backbone.scaling.")
_POSTERIORS = flags.DEFINE_list("posteriors", ["linear", "prior", "mlp"], "linear, prior, mlp.")
_BATCH = flags.DEFINE_integer("batch", 50, "Prompts read at once.")

STEPS = 400


class Pairs(NamedTuple):
    """Pairs of responses, to train on or held out."""

    texts: tuple[str, ...]  # N prompts
    prompts: np.ndarray  # [N, L] int32
    prompt_mask: np.ndarray
    tokens: np.ndarray  # [N, 2, T] int32
    mask: np.ndarray


class Source(NamedTuple):
    """Pairs, the policy that reads them, and who labels them."""

    train: Pairs
    test: Pairs
    model: Decoder
    params: Params
    mesh: Mesh
    eos_id: int
    # draw -> of train and test pairs [N]: above 0 where the first response is preferred
    margin: Callable[[int], tuple[np.ndarray, np.ndarray]]
    features: dict[str, tuple[np.ndarray, np.ndarray]]  # of other kinds, [N, 2, E] of train and test
    rewards: np.ndarray | None  # [N, 2, S] of the training pairs under the family that priors are fitted to


def from_task(config: Config, cache: Path) -> Source:
    """Samples the pairs of an embedded task."""
    family = tasks.find(config.task.name).reward_family
    assert family is not None
    config.backbone.kind = "ranker"
    shared = assets.prepare(config, cache, tasks.load(config, cache / "task"))
    task = shared.task
    policy, temperature = new_version(shared.ref_params), config.train.temperature
    sample = functools.partial(sample_now, shared.sampler, policy, num_responses=2, temperature=temperature)

    def collect(split: str, count: int, seed: int) -> tuple[Pairs, np.ndarray, np.ndarray]:
        """Returns pairs, features of the ranker and the reward basis."""
        texts, parts = task.prompts[split][:count], []
        prompts, mask = task.encode_prompts(texts)
        for start, rows, size in padded_batches(len(texts), _BATCH.value):
            out = sample(prompts[rows], mask[rows], jax.random.fold_in(jax.random.key(seed), start))
            assert shared.backbone is not None
            found = to_host((out.tokens, out.mask, shared.backbone((), prompts[rows], mask[rows], out)))
            parts.append([x[:size] for x in found])
        tokens, token_mask, features = (np.concatenate(kind) for kind in zip(*parts, strict=True))
        flat = [y for row in task.decode(tokens, token_mask) for y in row]
        basis = family.basis([x for x in texts for _ in range(2)], flat).reshape(len(texts), 2, -1)
        return Pairs(texts, prompts, mask, tokens, token_mask), features, basis

    (train, *found), (test, *held) = collect("train", _TRAIN.value, 1), collect(_SPLIT.value, _TEST.value, 2)
    features = {"ranker": (found[0], held[0]), "reward basis": normalised(found[1], held[1])}

    def reward(basis: np.ndarray, seeds: list[int]) -> np.ndarray:
        """Returns the rewards [N, 2, S] of S seeds."""
        draws = np.stack([family.draw(seed) for seed in seeds], axis=-1)
        return family.combine(basis.reshape(-1, basis.shape[-1]), draws).reshape(*basis.shape[:2], -1)

    def margin(draw: int) -> tuple[np.ndarray, np.ndarray]:
        seed = int(_SEEDS.value[draw % len(_SEEDS.value)])
        first, second = (reward(basis, [seed])[..., 0] for basis in (found[1], held[1]))
        return first[:, 0] - first[:, 1], second[:, 0] - second[:, 1]

    rewards = reward(found[1], [SEED_OFFSET + i for i in range(config.backbone.num_rewards)])
    fixed = shared.model, shared.ref_params, shared.mesh, task.eos_id
    return Source(train, test, *fixed, margin, features, rewards)


def from_file(config: Config) -> Source:
    """Reads the pairs of a preference set."""
    tokenizer = load_tokenizer(config.policy.folder, chat=config.task.chat, eos_token=config.task.eos_token)
    task = Task(
        name="pairs", tokenizer=tokenizer.backend, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id,
        prompt_length=config.task.prompt_length, response_length=config.task.response_length,
        prompts={}, references={}, prefix_ids=tokenizer.prefix_ids,
        template=tokenizer.chat if tokenizer.template is not None else None,
    )  # fmt: skip

    def length(pairs: Sequence[preferences.Pair]) -> list[int]:
        """Returns 0 for a pair that fits, else 1."""
        short = [len(ids) <= task.prompt_length for ids in task.prompt_ids([p.prompt for p in pairs])]
        fits = [task.responses_that_fit(texts) for texts in zip(*[p[1:] for p in pairs], strict=True)]
        return (~(np.array(short) & fits[0] & fits[1])).astype(int).tolist()

    def encode(pairs: list[preferences.Pair]) -> Pairs:
        texts = tuple(pair.prompt for pair in pairs)
        both = [task.encode_responses([pair[i] for pair in pairs]) for i in (1, 2)]
        tokens, mask = (np.stack(x, 1) for x in zip(*both, strict=True))
        return Pairs(texts, *task.encode_prompts(texts), tokens, mask)

    config.task.num_train, config.task.num_heldout = _TRAIN.value, _TEST.value
    train, test = map(encode, preferences.load(config.task, length, 0))
    mesh = make_mesh(**config.mesh)
    model, params = load_policy(config, config.policy.folder, mesh)
    ones = np.ones(len(train.texts)), np.ones(len(test.texts))
    return Source(train, test, model, params, mesh, task.eos_id, lambda _: ones, {}, None)


def state_kinds(source: Source, width: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields name and features [N, 2, E] of train and test of every layer, pool and scaling."""
    W, num_layers = source.model.config.width, source.model.config.num_layers
    for asked, read_eos in itertools.product(map(int, _LAYERS.value), _EOS.value):
        layer = hidden_states.middle(num_layers, asked)
        lower, decoder = hidden_states.truncate(source.mesh, source.model, source.params, layer)
        plain = {"decoder": decoder, "mean": jnp.zeros(2 * W), "scale": jnp.ones(2 * W)}
        extractor = HiddenStates(lower, "both", plain, -1 if read_eos == "True" else source.eos_id)
        both = [read(extractor, pairs) for pairs in (source.train, source.test)]
        columns = {"last": slice(W), "mean": slice(W, None), "both": slice(None)}
        for pool, scaling in itertools.product(_POOLS.value, _SCALINGS.value):
            states = [x[..., columns[pool]] for x in both]
            fitted = fit_scaling(states[0], scaling, width)
            train, test = ((x - fitted["mean"]) * fitted["scale"] for x in states)
            if "projection" in fitted:
                train, test = train @ fitted["projection"], test @ fitted["projection"]
            name = f"layer {layer}, {pool}, {scaling}" + (", with EOS" if read_eos == "True" else "")
            yield name, train, test


def read(extractor: HiddenStates, pairs: Pairs) -> np.ndarray:
    """Computes the states of all pairs, [N, 2, E'] f32."""
    parts = []
    for _, rows, size in padded_batches(len(pairs.texts), _BATCH.value):
        prompts, mask, tokens, token_mask = (x[rows] for x in pairs[1:])
        responses = Responses(jnp.asarray(tokens), jnp.asarray(token_mask), jnp.zeros(tokens.shape))
        parts.append(to_host(extractor((), prompts, mask, responses))[:size])
    return np.concatenate(parts)


def accuracy(config: Config, posterior: str, prior: Params | None, train, test, seed: int) -> float:
    """Learns from labelled pairs and returns the accuracy on held-out ones.

    Args:
        config: gives the posterior's settings.
        posterior: 'linear', 'prior' (linear too) or 'mlp'.
        prior: of the linear posterior, or None.
        train: features of the training pairs, [n, 2, E] f32, axis 1 is (y+, y−).
        test: features of the held-out pairs, like `train`.
        seed: of the heads and of their batches.
    """
    cfg, count, key = config.ensemble, len(train), jax.random.key(seed)
    data = experience.init(max(map(int, _LABELS.value)), train.shape[-1])
    data = experience.add(data, jnp.asarray(train), jnp.ones(count), jnp.ones(count, bool))
    if posterior == "mlp":
        optimizer = optax.adam(cfg.learning_rate)
        head = heads.Head(tuple(cfg.hidden), cfg.prior_scale)
        state = heads.init(key, head, cfg.num_members, train.shape[-1], optimizer)
        learn = _mlp(cfg.learning_rate, cfg.batch_size, cfg.regularization)
        state, _ = learn(jax.random.key(seed + 1), state, data)
    else:
        # Its one draw is the mean.
        linear = LinearPosterior(1, cfg.prior_scale, cfg.sharpness, cfg.newton_steps)
        state = linear.init(key, train.shape[-1], prior)
        state, _ = _linear(linear)(key, state, data)
    return evaluate.ensemble_accuracy(state.params, jnp.asarray(test))["ensemble/accuracy_heldout"]


@functools.cache
def _mlp(learning_rate: float, batch_size: int, regularization: float) -> Callable:
    """Returns the jitted training of the heads."""
    fixed: Any = dict(num_steps=STEPS, batch_size=batch_size, regularization=regularization)
    return jax.jit(lambda k, s, d: heads.update(k, s, d, optax.adam(learning_rate), **fixed))


@functools.cache
def _linear(posterior: LinearPosterior) -> Callable:
    """Returns the jitted update of the linear posterior."""
    return jax.jit(posterior.update)


def row(config: Config, source: Source, posterior: str, train: np.ndarray, test: np.ndarray) -> str:
    """Returns the cells of a row of the table."""
    prior: Any = None
    if posterior == "prior" and source.rewards is not None:
        prior = linear_prior(train, source.rewards)
    cells = []
    for count in map(int, _LABELS.value):
        found = []
        for draw in range(_DRAWS.value):
            ordered = []
            for margin, features in zip(source.margin(draw), (train, test), strict=True):
                first = (margin > 0)[:, None, None]
                ordered.append(np.where(first, features, features[:, ::-1])[margin != 0])
            chosen = np.random.default_rng(draw).permutation(len(ordered[0]))[:count]
            found.append(accuracy(config, posterior, prior, ordered[0][chosen], ordered[1], draw))
        error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
        cells.append(f"{np.mean(found):.3f} ± {error:.3f}")
    return " | ".join(cells)


def main(_: list[str]) -> None:
    config, folder = _CONFIG.value, Path(_WORKDIR.value)
    embedded = tasks.find(config.task.name).reward_family is not None
    try:
        source = (
            from_task(config, Path(config.cache_dir or folder / "cache")) if embedded else from_file(config)
        )
    except InputError as error:
        fail(error)
    print(f"| features | posterior | {' | '.join(_LABELS.value)} |")
    print("|---|---|" + "---|" * len(_LABELS.value))
    others = ((name, *features) for name, features in source.features.items())
    for name, train, test in itertools.chain(others, state_kinds(source, config.backbone.width)):
        for posterior in _POSTERIORS.value:
            if posterior != "prior" or source.rewards is not None:
                cells = row(config, source, posterior, train, test)
                print(f"| {name} | {posterior} | {cells} |", flush=True)


if __name__ == "__main__":
    app.run(main)
