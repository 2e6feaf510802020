"""Made annotations of AlpacaEval, and what its package makes of them."""

import csv
import json
import subprocess

import numpy as np
from helpers import sigmoid

REQUIREMENTS = [
    "alpaca_eval==0.6.6", "scikit-learn==1.9.1", "pandas==3.1.1", "patsy==1.0.3", "numpy==2.4.6", "scipy==1.17.1",
]  # fmt: skip
KINDS = ("length_controlled_minimal", "length_controlled_noreg", "length_controlled_v1")
# Prints what the package's own function returns for [(annotations, csv, kind, tol), …] on stdin.
PROGRAM = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import pandas
from alpaca_eval.metrics import glm_winrate
found = []
for annotations, gamed, kind, tol in json.load(sys.stdin):
    glm_winrate.hf_hub_download = lambda **_: gamed
    info = glm_winrate.GLM_INFO[kind]
    info = info | {"kwargs": info["kwargs"] | ({"tol": tol, "max_iter": 10**6} if tol else {})}
    metrics = glm_winrate.get_length_controlled_winrate(
        pandas.DataFrame(annotations), save_weights_dir=None, glm_info=info, is_warn_extreme_changes=False)
    names = ("win_rate", "standard_error", "length_controlled_winrate", "lc_standard_error")
    found.append([float(metrics[name]) for name in names])
print(json.dumps(found))
"""


def packages_scores(python, cases):
    """Returns four numbers in percent for each case: (annotations, csv, kind, the solver's tolerance or None)."""
    given = json.dumps([(rows, str(file), kind, tol) for rows, file, kind, tol in cases])
    call = [str(python), "-I", "-c", PROGRAM]
    done = subprocess.run(call, input=given, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def made(seed, folder, size=160):
    """Annotations of a model whose longer outputs are preferred, and a csv as df_gamed.csv; five have no preference."""
    rng = np.random.default_rng(seed)
    difficulty, lengths = rng.normal(size=size), rng.integers(1, 400, (2, size))
    delta = lengths[0] - lengths[1]
    share = sigmoid(
        rng.normal() - 1.5 * np.tanh(delta / delta.std(ddof=1)) + 0.7 * difficulty + rng.normal(size=size)
    )
    rows = [
        dict(instruction=f"q{i}", output_1="a" * int(lengths[0, i]), output_2="b" * int(lengths[1, i]),
             generator_1="baseline", generator_2="model", annotator="x", preference=1 + round(float(share[i]), 6))
        for i in range(size)
    ]  # fmt: skip
    for row in rows[3:size:40]:
        row["preference"] = None
    file = folder / f"df_gamed_{seed}.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(
            ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        for model, shift in (("verbose", -1.0), ("concise", 1.0)):
            for i in range(size):
                x = shift + 0.8 * rng.normal()
                p = sigmoid(-2 * np.tanh(x) + 0.5 * difficulty[i] + rng.normal())
                writer.writerow([model, round(float(p), 6), i, round(x, 6), round(difficulty[i], 6), False])
    return rows, file
