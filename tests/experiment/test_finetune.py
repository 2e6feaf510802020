"""`sea_jax.main sft` as a user calls it, on two devices; the folder that it leaves is a policy to begin from."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from helpers import decoder
from ml_collections import ConfigDict

from sea_jax.experiment import finetune
from sea_jax.pretraining import sft
from sea_jax.runtime.mesh import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(workdir, cache, *fields):
    done = subprocess.run(
        [
            sys.executable, "-m", "sea_jax.main", "sft", "--config=configs/quickstart.py", f"--workdir={workdir}",
            "--config.sft.steps=20", "--config.progress=False",
            "--config.policy.width=32", "--config.policy.mlp_width=32", "--config.eval.split=tuning",
            "--config.eval.num_pairs=20", f"--config.cache_dir={cache}", *fields,
        ],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"of 500 tuning references: ([\d.]+) before, ([\d.]+) after 20 steps", done.stdout)
    assert found, done.stdout
    return float(found[1]), float(found[2])


def test_sft_and_again_from_what_it_left(tmp_path):
    fields = ("--config.mesh.data=2", "--config.sft.prompt_weight=0.0", "--config.sft.token_chunk=8")
    before, after = command(tmp_path / "a", tmp_path / "cache", *fields)
    assert after < before - 1
    again, further = command(
        tmp_path / "b", tmp_path / "cache", f"--config.policy.folder={tmp_path}/a/policy"
    )
    assert abs(again - after) < 1e-3 and further < again
    kept = {f.name for f in (tmp_path / "b" / "policy").iterdir()}
    assert kept == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_heldout_nll_counts_every_token_once():
    """Five examples two at a time against all at once."""
    model, params = decoder()
    rng = np.random.default_rng(0)
    mask = np.arange(4) < np.array([4, 1, 3, 2, 4])[:, None]
    ones = np.ones((5, 3), bool)
    data = (rng.integers(0, 11, (5, 3)), ones, rng.integers(0, 11, (5, 4)), mask)
    whole, _ = jax.jit(sft.sft_loss, static_argnums=(0, 3))(model, params, tuple(map(jnp.asarray, data)), 0.0)
    found = finetune.heldout_nll(ConfigDict(dict(token_chunk=0)), model, params, data, make_mesh(), 2)
    np.testing.assert_allclose(found, whole, rtol=1e-5)
