"""What several test files need: tiny models, padded batches, goodness-of-fit tests."""

import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from scipy import stats

from sea_jax import algorithm
from sea_jax.ensemble import experience, heads
from sea_jax.ensemble.posterior import HeadEnsemble
from sea_jax.models import (
    Decoder,
    GatedRewardConfig,
    LlamaConfig,
    PythiaConfig,
    RewardConfig,
    convert,
)
from sea_jax.models.layers import RopeScaling

ROOT = pathlib.Path(__file__).resolve().parents[1]

TINY = dict(vocab_size=11, num_layers=2, width=16, num_heads=2, mlp_width=24, rotary_pct=0.5)
TINY_LLAMA = dict(
    vocab_size=11, num_layers=2, width=12, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=18,
    rope_base=100.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8), max_length=64,
)  # fmt: skip
TINY_GATE = dict(num_objectives=5, gating_width=7, gating_layers=2, temperature=0.7, prompt_end=(8, 9))
GOLDEN_LLAMAS = dict(
    tied=dict(tied=True),
    untied=dict(
        tied=False, num_kv_heads=1, rope_scaling=None, head_dim=4, attention_bias=True, mlp_bias=True,
        norm_eps=1e-2,
    ),
)  # fmt: skip


def decoder(seed=0, **config):
    """A tiny Pythia and its random parameters."""
    model = Decoder(PythiaConfig(**(TINY | config)))
    return model, random_params(model, seed)


def llama(seed=0, **config):
    """A tiny Llama and its random parameters: grouped queries, scaled rotary embedding, tied head."""
    model = Decoder(LlamaConfig(**(TINY_LLAMA | config)))
    return model, random_params(model, seed)


def rewarder(kind="llama", seed=0, **trunk):
    """A tiny reward model, of one number on a Llama or a Pythia, or gated; and its random parameters."""
    if kind == "pythia":
        config = RewardConfig(PythiaConfig(**(TINY | trunk)), padding_idx=10)
    elif kind == "llama":
        config = RewardConfig(LlamaConfig(**(TINY_LLAMA | dict(tied=False) | trunk)), padding_idx=10)
    else:
        config = GatedRewardConfig(LlamaConfig(**(TINY_LLAMA | trunk)), padding_idx=10, **TINY_GATE)
    model = config.build()
    return model, random_params(model, seed)


shapes = functools.cache(convert.shapes)  # a trace of the model's init


def random_params(model, seed=0):
    """Of any decoder or reward model: no zero biases or unit scales that would hide a mistake."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in sorted(shapes(model).items()):
        values = rng.normal(size=leaf.shape)
        if path.endswith("kernel"):
            fan_in = (1, 2) if path.split("/")[-2] == "out" else (1,) if path.startswith("layers/") else (0,)
            values *= 1.5 / np.sqrt(np.prod([leaf.shape[axis] for axis in fan_in]))
        elif path.endswith("scale"):
            values = 1 + 0.2 * values
        elif path.endswith("bias"):
            values *= 0.2
        flat[path] = values.astype(np.float32)
    return unflatten_dict(flat, sep="/")


def pad(rows, width, side, value=0):
    """Lists of tokens -> tokens [B, width] int32 and mask [B, width] bool."""
    tokens = np.full((len(rows), width), value, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, True
    return tokens, mask


def batch(lengths, width, side, vocab_size, seed=0):
    """Random tokens of the given lengths, padded with noise: padding must not be read."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, vocab_size, n) for n in lengths]
    tokens, mask = pad(rows, width, side)
    return np.where(mask, tokens, rng.integers(0, vocab_size, tokens.shape)).astype(np.int32), mask


def preference_batch(lengths, prompt_lengths=(3, 4, 1, 4), seed=0, weight=None, from_oracle=None):
    """Random labelled duels for the tiny model: lengths [B, 2] -> fields of a PreferenceBatch."""
    B, T, L, E = len(lengths), 4, 4, 3
    prompts, prompt_mask = batch(prompt_lengths[:B], L, "left", TINY["vocab_size"], seed)
    tokens, mask = batch(np.ravel(lengths), T, "right", TINY["vocab_size"], seed + 1)
    features = np.random.default_rng(seed + 2).normal(size=(B, 2, E)).astype(np.float32)
    return dict(
        prompts=jnp.array(prompts),
        prompt_mask=jnp.array(prompt_mask),
        tokens=jnp.array(tokens.reshape(B, 2, T)),
        mask=jnp.array(mask.reshape(B, 2, T)),
        features=jnp.array(features),
        from_oracle=jnp.array([True] * B if from_oracle is None else from_oracle),
        weight=jnp.array([1.0] * B if weight is None else weight, jnp.float32),
    )


def fits(counts, probabilities, alpha=1e-4):
    """Chi-square: True if counts look drawn from probabilities; never what has probability 0."""
    counts, probabilities = np.ravel(counts), np.ravel(probabilities)
    possible = probabilities > 0
    if counts[~possible].any() or not np.isclose(probabilities.sum(), 1, atol=1e-5):
        return False
    if possible.sum() == 1:
        return True
    expected = probabilities[possible] / probabilities[possible].sum() * counts.sum()
    return stats.chisquare(counts[possible], expected).pvalue > alpha


def full_logits(tiny, prompts, prompt_mask, tokens):
    """Logits [B, M, T, V] that predict each response token, from the whole sequence in one row."""
    (B, M, T), L = tokens.shape, prompts.shape[1]
    whole = np.concatenate([np.repeat(prompts, M, 0), tokens.reshape(B * M, T)], 1)
    mask = np.concatenate([np.repeat(prompt_mask, M, 0), np.ones((B * M, T), bool)], 1)
    logits = jax.jit(tiny[0].apply)({"params": tiny[1]}, whole, mask)
    return np.asarray(logits[:, L - 1 : -1], np.float64).reshape(B, M, T, -1)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def chosen(logp, tokens):
    return np.take_along_axis(logp, tokens[..., None], -1)[..., 0]


def in_own_process(file, *args, devices=0):
    """A test's file run as a program: the number of devices is fixed when JAX starts. Returns what it printed.

    With `devices` there are so many of the CPU; without, it asks for them itself.
    """
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    if devices:
        env["JAX_NUM_CPU_DEVICES"] = str(devices)
    command = [sys.executable, str(file), *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def write_rows(folder, rows, name="train.jsonl"):
    """A data set of one file, by its ending jsonl or parquet; returns the folder."""
    folder.mkdir(exist_ok=True)
    if name.endswith("parquet"):
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])


def assert_equal(params, expected):
    params, expected = flatten_dict(params), flatten_dict(expected)
    assert params.keys() == expected.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=str(path))
        assert leaf.dtype == np.float32


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def to_transformers(model, params):
    """The same weights in transformers' GPTNeoXForCausalLM, in evaluation mode."""
    import torch
    import transformers

    config = transformers.GPTNeoXConfig(**model.config.to_hf(), attn_implementation="eager")
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    tensors = {name: torch.tensor(array) for name, array in convert.to_hf(model, params).items()}
    if "lm_head.weight" in theirs.state_dict():  # transformers 5 in memory; on disk as before
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    theirs.load_state_dict(tensors, strict=True)
    return theirs


# One learning step of fixed inputs: tests/parity/test_update_hf.py computes it with torch, and
# tests/test_algorithm.py holds what torch found.
STEP_LENGTHS = [[4, 2], [1, 3], [3, 3], [2, 4]]
STEP_ADAM = dict(learning_rate=0.01, eps=1e-3)  # eps: no rounding noise where a gradient is 0
STEP_BETA = 0.3
STEP_WEIGHT = [1.0, 1.0, 0.0, 1.0]
STEP_FROM_ORACLE = [True, False, True, True]
LEARNING = dict(
    policy_optimizer=optax.adam(**STEP_ADAM),
    dap_options=(("beta", STEP_BETA),),
    posterior=HeadEnsemble(heads.Head((4,)), 2, optax.adam(1e-2), num_steps=2, batch_size=4),
)


def draw_ensemble(key, feature_width=3, capacity=5, posterior=LEARNING["posterior"]):
    """Φ⁰ of random heads and an empty D_0."""
    return posterior.init(key, feature_width, None), experience.init(capacity, feature_width)


update = jax.jit(algorithm.update, static_argnames="settings")


def step_inputs():
    """Model, π_θ, π_ref and the fields of B_t: rows 0 and 3 bought, 1 synthetic, 2 a void duel."""
    model, params = decoder(seed=0, num_layers=1)
    _, ref_params = decoder(seed=1, num_layers=1)
    batch = preference_batch(STEP_LENGTHS, weight=STEP_WEIGHT, from_oracle=STEP_FROM_ORACLE)
    return model, params, ref_params, batch


def assert_same_golden(file, now, close):
    """A golden file holds what the reference says today: arrays under the name `close` to 1e-5, all else exactly."""
    stored = np.load(file)
    assert set(stored) == set(now)
    for name, value in now.items():
        parts = name.split("/")
        if close in parts:
            np.testing.assert_allclose(stored[name], value, atol=1e-5)
        elif "config" in parts:
            assert json.loads(str(stored[name])) == json.loads(value)
        else:
            np.testing.assert_array_equal(stored[name], value)


class Bomb:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.file),)


def bomb(file):
    """The pickle of a Bomb, which works."""
    content = pickle.dumps(Bomb(file))
    pickle.loads(content)
    assert file.exists()
    file.unlink()
    return content
