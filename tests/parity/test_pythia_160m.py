"""A policy of Pythia-160M's size goes through the whole command, and what comes out opens in transformers.

`python -m pytest -s tests/parity/test_pythia_160m.py` also prints what the command took.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from real_text import byte_tokenizer, posts, user_files
from tokenizers import Tokenizer

from sea_jax import models
from sea_jax.runtime.run_folder import Summary, read_summary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = dict(
    vocab_size=50_304, num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
    max_position_embeddings=2048, rotary_pct=0.25, use_parallel_residual=True,
)  # fmt: skip
NUM_PARAMS = 162_322_944  # Pythia's README
NUM_TOKENS = 50_277  # of its tokenizer; the embedding has more rows, as here

CONFIG = """
import pathlib
from real_text import small_config

def get_config():
    config = small_config(pathlib.Path({folder!r}))
    config.policy.dtype = "float32"
    return config
"""


def large_tokenizer():
    """A byte tokenizer of as many tokens as Pythia's: pairs of letters, and pairs of these."""
    tokenizer = json.loads(byte_tokenizer(posts(40)).to_str())
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [(a, b) for a in ("Ġ", *letters) for b in letters]
    fours = itertools.product(["".join(pair) for pair in pairs], ["".join(pair) for pair in pairs[26:]])
    for a, b in itertools.chain(pairs, fours):
        if len(vocab) == NUM_TOKENS:
            break
        if a + b not in vocab:
            vocab[a + b] = len(vocab)
            merges.append([a, b])
    return Tokenizer.from_str(json.dumps(tokenizer))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's files; the policy as transformers writes it, with random weights."""
    folder = tmp_path_factory.mktemp("files")
    user_files(folder)
    torch.manual_seed(0)
    theirs = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE))
    assert sum(p.numel() for p in theirs.parameters()) == NUM_PARAMS
    theirs.save_pretrained(folder / "policy")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=large_tokenizer(), eos_token="<|endoftext|>"
    )
    assert len(tokenizer) == NUM_TOKENS
    tokenizer.save_pretrained(folder / "policy")
    return folder


def command(folder, workdir):
    """Runs it; seconds and the most memory in bytes."""
    config = folder / "config.py"
    config.write_text(CONFIG.format(folder=str(folder)))
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sea_jax.main", f"--config={config}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=env,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - start, usage.ru_maxrss * 1024


@pytest.mark.slow
def test_the_whole_loop(folder, tmp_path):
    seconds, memory = command(folder, tmp_path)
    run = tmp_path / "runs" / "sea-seed0"
    print(
        f"\n{NUM_PARAMS:,} parameters, 8 queries: {seconds:.0f} s, at most {memory / 2**30:.2f} GiB resident"
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Four labels of the burn-in, then half of four a step; a void duel would cost a step more.
    steps = [row for row in rows if "policy/loss" in row]
    assert len(steps) == 3 and rows[-1]["queries"] == 8
    assert read_summary(run) == Summary(8, "sea", "SEA", True)

    (model, before), (_, after) = (models.load(str(f)) for f in (folder / "policy", run / "policy"))
    exported = transformers.AutoModelForCausalLM.from_pretrained(run / "policy").eval()
    words = transformers.AutoTokenizer.from_pretrained(run / "policy")
    text = posts(1)[0]["prompt"]
    assert words(text)["input_ids"] == large_tokenizer().encode(text).ids
    ids = np.array([words(text)["input_ids"]])
    with torch.no_grad():
        theirs = exported(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.apply({"params": after}, ids), theirs, atol=1e-4)
    assert np.abs(np.asarray(model.apply({"params": before}, ids)) - theirs).max() > 1e-2
