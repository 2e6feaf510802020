"""The length-controlled win rate: closed forms, a brute-force minimum, and the numbers of AlpacaEval's package."""

import math

import alpaca_annotations as made_up
import numpy as np
import pytest
from helpers import sigmoid
from scipy import optimize

from launch import alpaca_files, environments
from launch import length_controlled as lc
from sea_jax.errors import InputError

# What the package alpaca_eval 0.6.6 returned for `made(seed)`, its solver run to the end (tol=1e-10): win rate and
# standard error, then for each model the length-controlled win rate and its standard error, in percent.
PACKAGE = {
    0: [37.924494, 2.125445, (35.957738, 0.0), (36.019349, 1.004948), (35.75037, 0.963881)],
    1: [49.200758, 2.2032, (49.799364, 0.0), (48.877801, 0.866327), (48.8944, 0.818421)],
    2: [56.741556, 2.14131, (58.035565, 0.0), (57.502715, 1.044934), (57.718432, 0.994575)],
}


def logit(p):
    return math.log(p / (1 - p))


def columns(annotations):
    """Preferences and the two lengths of annotations."""
    share = np.array([alpaca_files.share(row["preference"]) for row in annotations])
    return share, *(np.array([len(row[name]) for row in annotations]) for name in ("output_2", "output_1"))


def scored(annotations, file, kind):
    difficulty = None if kind == made_up.KINDS[0] else lc.read_difficulty(file)
    if kind == made_up.KINDS[1]:
        difficulty = difficulty._replace(gamed=None)
    return lc.score(*columns(annotations), range(len(annotations)), difficulty)


@pytest.mark.parametrize("seed", PACKAGE)
def test_numbers_of_the_package(seed, tmp_path):
    rows, file = made_up.made(seed, tmp_path)
    win_rate, error, *rest = PACKAGE[seed]
    for kind, expected in zip(made_up.KINDS, rest, strict=True):
        np.testing.assert_allclose(scored(rows, file, kind)[:4], (win_rate, error, *expected), atol=2e-6)


@pytest.mark.alpaca_eval
def test_the_package_itself(tmp_path):
    """Its solver stops early as it is shipped, within 0.1 points here; run to the end it agrees to 1e-5 points."""
    python = environments.ensure("alpaca_eval", made_up.REQUIREMENTS)
    cases = [
        (*made_up.made(seed, tmp_path), kind, tol)
        for seed in (*PACKAGE, 3, 4) for kind in made_up.KINDS for tol in (1e-10, None)
    ]  # fmt: skip
    for (rows, file, kind, tol), theirs in zip(cases, made_up.packages_scores(python, cases), strict=True):
        np.testing.assert_allclose(
            scored(rows, file, kind)[:4], theirs, atol=1e-5 if tol else 0.1, err_msg=kind
        )


def rows_of(features, preference, weight=1.0):
    preference = np.asarray(preference, float)
    return lc.Rows(
        np.asarray(features, float), preference, np.broadcast_to(weight, preference.shape).astype(float)
    )


def test_one_term_has_a_closed_form():
    """C (n σ(w) − Σ y) = −sign(w); nothing is fitted where |n/2 − Σ y| ≤ 1/C."""
    ones, y = np.ones((10, 1)), np.full(10, 0.8)
    np.testing.assert_allclose(lc.fit(rows_of(ones, y), 1.0), logit(0.7))
    np.testing.assert_allclose(lc.fit(rows_of(ones, 1 - y), 1.0), -logit(0.7))
    np.testing.assert_allclose(lc.fit(rows_of(ones, y, weight=0.5), 2.0), logit(0.7))
    np.testing.assert_allclose(lc.fit(rows_of(ones, y), 1e9), logit(0.8), rtol=1e-6)
    assert lc.fit(rows_of(ones, y), 1 / 3.1) == 0 != lc.fit(rows_of(ones, y), 1 / 2.9)


def test_two_groups_have_a_closed_form():
    """x = (±1, 1) with shares 0.4 and 0.9; the penalties of w₁ < 0 < w₂ cancel in one group and add in the other."""
    features = [[1, 1]] * 5 + [[-1, 1]] * 5
    length, model = lc.fit(rows_of(features, [0.4] * 5 + [0.9] * 5), 2.0)
    plus, minus = 0.4, 0.9 - 1 / (5 * 2.0)
    assert length < 0 < model
    np.testing.assert_allclose([length + model, model - length], [logit(plus), logit(minus)])


@pytest.mark.parametrize("strength", [0.05, 1.0, 100.0])
def test_no_other_coefficients_are_better(strength):
    """A general minimiser, on w = u − v with u, v ≥ 0, comes to the same."""
    rng = np.random.default_rng(3)
    x, y, weight = rng.normal(size=(40, 3)), rng.uniform(size=40), rng.uniform(0.1, 1, 40)

    def objective(both):
        logits = x @ (both[:3] - both[3:])
        loss = weight @ (np.logaddexp(0, logits) - y * logits)
        slope = strength * x.T @ (weight * (sigmoid(logits) - y))
        return strength * loss + both.sum(), np.concatenate([1 + slope, 1 - slope])

    found = optimize.minimize(objective, np.full(6, 0.1), jac=True, bounds=[(0, None)] * 6, method="L-BFGS-B",
                              options=dict(ftol=1e-15, gtol=1e-10, maxiter=10_000)).x  # fmt: skip
    np.testing.assert_allclose(lc.fit(rows_of(x, y, weight), strength), found[:3] - found[3:], atol=1e-5)


def test_the_strength_of_the_smallest_loss_on_held_out_rows():
    """With one term each fold's fit has the closed form above; row i is in fold i mod 5."""
    y = np.random.default_rng(2).uniform(0.2, 1, 23)
    total = dict.fromkeys(lc.STRENGTHS, 0.0)
    for fold in range(5):
        held = range(fold, 23, 5)
        train = np.delete(y, held)
        for strength in total:
            p = max((train.sum() - 1 / strength) / len(train), 0.5)  # more than half is preferred
            total[strength] -= np.mean([y[i] * math.log(p) + (1 - y[i]) * math.log(1 - p) for i in held])
    best = min(total, key=total.get)
    assert lc.choose_strength(rows_of(np.ones((23, 1)), y)) == best
    assert best not in (lc.STRENGTHS[0], lc.STRENGTHS[-1])  # else the test would tell little


def test_a_known_model_is_recovered():
    """Without the effect of length the model wins 1 of 4, though longer outputs make it win more often."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(500, 900, 4_000), rng.integers(100, 500, 4_000)
    delta = (theirs - ours) / (theirs - ours).std(ddof=1)
    wins = rng.uniform(size=4_000) < sigmoid(logit(0.25) - 1.2 * np.tanh(delta))
    found = lc.score(wins.astype(float), ours, theirs)
    assert found.win_rate > 45 and abs(found.length_controlled - 25) < 4
    np.testing.assert_allclose(found.standard_error, 100 * np.sqrt(wins.var(ddof=1) / 4_000))
    other_unit = lc.score(wins.astype(float), 10 * ours, 10 * theirs)
    np.testing.assert_allclose(other_unit[:4], found[:4], atol=1e-9)


def test_a_row_without_a_preference_is_predicted_and_not_fitted(tmp_path):
    rows, file = made_up.made(0, tmp_path)
    rows = [row | {"preference": row["preference"] or 1.5} for row in rows]
    difficulty = lc.read_difficulty(file)
    full = lc.score(*columns(rows), range(160), difficulty)
    rows[7]["preference"] = None
    lacks = lc.score(*columns(rows), range(160), difficulty)
    assert lacks.coefficients != full.coefficients
    d = np.array([difficulty.of[i] for i in range(160)])
    predicted = sigmoid(lacks.coefficients[2] + lacks.coefficients[1] * d)
    np.testing.assert_allclose(lacks.length_controlled, 100 * predicted.mean())
    np.testing.assert_allclose(lacks.win_rate, 100 * np.nanmean(columns(rows)[0]))


def test_the_csv(tmp_path):
    """The first row of an instruction counts; a row that is no gamed model's has weight 1 and the model's term."""
    file = tmp_path / "x.csv"
    file.write_text(
        "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "v,0.25,0,1.0,2.5,False\nv,,1,0.0,-1,False\nc,1.0,0,-1.0,9,False\nm,0.5,1,0,-1,True\n"
    )
    found = lc.read_difficulty(file)
    assert found.of == {0: 2.5, 1: -1.0}
    np.testing.assert_allclose(
        found.gamed.features, [[math.tanh(1), 2.5, 0], [-math.tanh(1), 9, 0], [0, -1, 1]]
    )
    assert found.gamed.preference.tolist() == [0.25, 1.0, 0.5] and found.gamed.weight.tolist() == [
        0.1,
        0.1,
        1.0,
    ]
    file.write_text("index,instruction_difficulty\n0,1.5\n")
    assert lc.read_difficulty(file) == ({0: 1.5}, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "no column index with a row; valid is instruction_difficulty.csv or df_gamed.csv"),
        ("index,difficulty\n0,2\n", "no column instruction_difficulty with a row; valid is"),
        ("index,instruction_difficulty\n", "no column index with a row"),
        ("index,instruction_difficulty\n0,1\n1,x\n", "row 2: instruction_difficulty='x'; valid is a number"),
        ("index,instruction_difficulty\nnan,1\n", "row 1: index='nan'; valid is a number"),
        ("index,instruction_difficulty\n0\n", "row 1: instruction_difficulty=None; valid is a number"),
        ("index,instruction_difficulty\n0,\xff\n", "no csv ("),
    ],
)  # fmt: skip
def test_a_csv_that_cannot_be_used(tmp_path, content, said):
    file = tmp_path / "x.csv"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as error:
        lc.read_difficulty(file)
    assert (
        str(error.value).startswith(str(file)) and said in str(error.value) and "\n" not in str(error.value)
    )


def test_annotations_that_cannot_be_scored():
    share, lengths = np.array([0.1, 0.9, 0.4, 0.5, 0.6]), np.arange(5)
    with pytest.raises(InputError, match="annotations: 4 with a preference; valid is at least 5"):
        lc.score(np.where(lengths == 2, np.nan, share), lengths, lengths[::-1])
    with pytest.raises(InputError, match="all outputs differ from the baseline's by the same length; valid"):
        lc.score(share, lengths + 3, lengths)
    with pytest.raises(InputError, match=r"instruction 4 of the prompts \(from 0\); valid is one of the 4 "):
        lc.score(share, lengths, lengths[::-1], range(5), lc.Difficulty(dict.fromkeys(range(4), 0.0), None))
