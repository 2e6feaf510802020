"""The host loop: what is bought, who labels, what is written, and that a seed decides everything."""

import inspect
import json
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sigmoid
from small_run import loop, small_run

from configs import quickstart
from sea_jax import evaluate, train
from sea_jax.config.overrides import for_method
from sea_jax.ensemble import heads
from sea_jax.evaluate import Evaluator
from sea_jax.experiment.setup import make_evaluator
from sea_jax.losses import DAP_LOSSES
from sea_jax.methods.method import Prompts
from sea_jax.oracles import protocol
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.labeller import Labeller
from sea_jax.state import step_keys
from sea_jax.types import Candidates, Duel


def trained(folder, method, **overrides):
    run = small_run(folder, method, **overrides)
    asked = []
    label = run.labeller.ask
    run.labeller.ask = lambda prompts, *rest, **kw: asked.append(len(prompts)) or label(prompts, *rest, **kw)
    return run, asked, *loop(run)


def test_queries_are_bought_by_gamma_after_burn_in_and_end_at_the_budget(tmp_path):
    """B = 4: four a step until 8 are bought, then round(0.5 · 4) = 2 a step, and the last one alone."""
    run, asked, metrics, samples = trained(
        tmp_path, "sea", **{"train.query_budget": 13, "sea.burn_in": 8, "sea.gamma": 0.5}
    )
    assert asked == [4, 4, 2, 2, 1]
    assert run.labeller.num_queries == int(run.state.num_queries) == int(run.state.experience.size) == 13
    shares = [row["duel/from_oracle"] for row in metrics if "duel/from_oracle" in row]
    assert shares == [1, 1, 0.5, 0.5, 0.25]
    assert {row["labelled_by"] for row in samples} == {"oracle", "ensemble"}
    assert all(0 <= row["ensemble_probability"] <= 1 for row in samples)
    assert [row["queries"] for row in metrics if "eval/win_rate_sft" in row] == [0, 13]


@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1, 1, 1, 0, 1, 0, 1]), (2, [2, 1, 1, 1])])
def test_a_share_below_one_duel_a_step_is_held_over_steps(tmp_path, batch_size, expected):
    """γ = 0.5: with one prompt a step every second duel is the ensemble's, after a burn-in of two labels."""
    fields = {"train.query_budget": 5, "sea.burn_in": 2, "sea.gamma": 0.5, "train.batch_size": batch_size}
    _, asked, _, _ = trained(tmp_path, "sea", **fields)
    assert asked == expected


@pytest.mark.parametrize("method", ["passive", "ceiling", "sea_oracle_only"])
def test_methods_without_synthetic_pairs_buy_every_duel(tmp_path, method):
    run, asked, metrics, _ = trained(tmp_path, method, **{"sea.burn_in": 0})
    assert asked == [4, 4, 4, 4]
    learned = method == "sea_oracle_only"
    assert (run.state.experience is not None) == learned
    assert not learned or int(run.state.experience.size) == 16
    assert ("ensemble/accuracy_heldout" in metrics[0]) == learned


@pytest.mark.parametrize("dap", DAP_LOSSES)
def test_every_option_of_a_loss_is_a_field_of_the_config(tmp_path, dap):
    """Whatever the quickstart's loss is, and with values that no loss has by default."""
    values = {"beta": 0.7, "per_token": True, "margin_ratio": 0.9}
    assert values.keys() <= set(quickstart.get_config().train)
    fields = {f"train.{name}": value for name, value in values.items()}
    settings = small_run(tmp_path, "passive", **{"train.dap": dap} | fields).settings
    options = set(inspect.signature(DAP_LOSSES[dap]).parameters) - {"policy_logps", "ref_logps", "lengths"}
    assert dict(settings.dap_options) == {name: values[name] for name in options}


def test_a_method_may_have_settings_of_its_own():
    config = quickstart.get_config()
    shared = config.train.batch_size
    config.overrides.update({"passive": {"train": {"batch_size": 2 * shared}}})
    assert for_method(config, "passive").train.batch_size == 2 * shared
    assert for_method(config, "sea") == config
    assert config.train.batch_size == shared


def test_a_cold_ensemble_leaves_the_choice_to_chance(tmp_path):
    run = small_run(tmp_path, "sea", **{"sea.passive_queries": 8})
    sampled, given = (Prompts(None, ["x"], np.array([row])) for row in (0, -1))
    for bought, strategy in ((0, "passive"), (7, "passive"), (8, "bai_ts")):
        run.labeller.num_queries = bought
        assert train.strategy(run, sampled) == strategy
    assert train.strategy(run, given) == "passive"
    assert train.strategy(small_run(tmp_path, "passive"), sampled) == "passive"


@pytest.mark.parametrize("method", ["passive", "sea", "ee_ts"])
def test_online_win_rate_is_that_of_what_the_oracle_was_shown(tmp_path, monkeypatch, method):
    """Against each prompt's own reference, over both responses of every duel bought; none is bought for it."""
    reward = lambda xs, ys: np.array([crc32(f"{x}|{y}".encode()) % 997 / 200 for x, y in zip(xs, ys)])  # noqa: B905, E731
    run = small_run(
        tmp_path, method,
        **{"sea.burn_in": 8, "sea.gamma": 0.5, "oracle.labels": "bernoulli", "train.query_budget": 14},
    )  # fmt: skip
    run.oracle = BradleyTerryOracle(reward)
    shown, label, read = [], run.labeller.ask, run.oracle.probability
    sizes = []
    run.labeller.ask = lambda *args, **kw: shown.append(args) or label(*args, **kw)
    run.oracle.probability = lambda x, *ys: sizes.append(len(x)) or read(x, *ys)
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: {})
    monkeypatch.setattr(Evaluator, "before_and_after", lambda *_: [])
    rows, _ = loop(run)
    metrics = [row for row in rows if "policy/loss" in row]

    task = run.assets.task
    reference = dict(zip(task.prompts["train"], task.references["train"], strict=True))
    every = []
    for row, (prompts, first, second) in zip(metrics, shown, strict=True):
        won = [
            sigmoid(float(reward([x], [y])[0] - reward([x], [reference[x]])[0]))
            for x, pair in zip(prompts, zip(first, second, strict=True), strict=True) for y in pair
        ]  # fmt: skip
        every += won
        np.testing.assert_allclose(row["duel/win_rate_reference"], np.mean(won), rtol=1e-6)
        np.testing.assert_allclose(row["duel/win_rate_reference_so_far"], np.mean(every), rtol=1e-6)
    assert np.std(every) > 0.05 and run.labeller.num_queries == 14
    assert sizes == [2 * len(prompts) for prompts, _, _ in shown]  # the labeller has an oracle of its own


def test_a_step_that_shows_nothing_has_no_online_win_rate(tmp_path):
    fields = {"train.temperature": 1e-6, "train.max_idle_steps": 2}
    _, asked, metrics, _ = trained(tmp_path, "passive", **fields)
    assert asked == [0, 0] and not any("duel/win_rate_reference" in row for row in metrics)


@pytest.mark.parametrize(
    ("online", "kind", "measured"),
    [("auto", "task", True), ("auto", "remote", False), ("yes", "reward_model", True), ("no", "task", False)],
)
def test_the_online_win_rate_is_measured_where_the_oracle_is_free_or_if_asked_for(
    tmp_path, online, kind, measured
):
    run = small_run(tmp_path, "passive", **{"eval.online": online})
    run.config.oracle.kind = kind
    metrics, _ = loop(run)
    assert any("duel/win_rate_reference" in row for row in metrics) == measured


def test_no_text_is_scored_twice(tmp_path):
    """Labels, the online win rate, the held-out pairs and every evaluation share the rewards of texts."""
    run, seen = small_run(tmp_path, "sea", **{"eval.every_queries": 4, "train.learning_rate": 0.05}), []
    reward = run.oracle._reward_fn

    def counted(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return reward(prompts, responses)

    run.oracle._reward_fn = counted
    metrics, _ = loop(run)
    assert len(seen) == len(set(seen)) > 30
    assert any("duel/win_rate_reference" in row for row in metrics)
    # The texts of the last evaluation, with the rewards that its mean was taken of.
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    assert tuple(prompts) == run.assets.eval_set.prompts
    evaluated = [row["eval/reward"] for row in metrics if "eval/reward" in row]
    for when, mean in (("before", evaluated[0]), ("after", evaluated[-1])):
        rewards = [row[f"reward_{when}"] for row in rows]
        assert np.mean(rewards) == pytest.approx(mean, rel=1e-5)
        np.testing.assert_allclose(rewards, run.oracle.rewards(prompts, [row[when] for row in rows]))
    assert [row["before"] for row in rows] != [row["after"] for row in rows]


def test_best_of_n_is_chosen_by_the_ensembles_mean(tmp_path, monkeypatch):
    """Scores against the members' rewards one by one; N samples; metrics under names of their own."""
    run = small_run(tmp_path, "sea", **{"eval.best_of": 3})
    backbone, data = run.assets.backbone, run.assets.eval_set
    evaluator = make_evaluator(run, run.assets)
    best, seen = evaluate.best_responses, []

    def checked(task, sample, score, *rest):
        out = sample(data.tokens, data.mask, jax.random.key(3))
        assert out.tokens.shape[:2] == (4, 3)
        members = [jax.tree.map(lambda p, k=k: p[k : k + 1], run.state.ensemble.params) for k in range(3)]
        features = backbone(data.prompts, data.tokens, data.mask, out)
        each = np.stack([heads.rewards(member, features)[0] for member in members])
        assert each.shape == (3, 4, 3) and each.std(0).min() > 0
        np.testing.assert_allclose(score(np.arange(4), out), each.mean(0), atol=1e-5)
        seen.append(best(task, sample, score, *rest))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "best_responses", checked)
        key = step_keys(run.state.key, 0).evaluate
        metrics = evaluator.best_of(run.state.ensemble.params, run.policy, key)
    (texts, length), *_ = seen
    plain, rewards = evaluate.evaluate_policy(run.oracle, "threshold", data, texts, length)
    assert plain["eval/reward"] == pytest.approx(rewards.mean())
    assert metrics == {f"eval/best_of_{name.removeprefix('eval/')}": value for name, value in plain.items()}
    assert run.labeller.num_queries == 0


def test_best_of_n_is_off_by_default_and_leaves_training_alone(tmp_path):
    runs = {n: trained(tmp_path / f"{n}", "sea", **{"eval.best_of": n}) for n in (1, 3)}
    has = {
        n: any("eval/best_of_win_rate_sft" in row for row in metrics)
        for n, (_, _, metrics, _) in runs.items()
    }
    assert has == {1: False, 3: True} and quickstart.get_config().eval.best_of == 1
    params = [runs[n][0].state.policy.params for n in (1, 3)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    _, _, metrics, _ = trained(tmp_path / "passive", "passive", **{"eval.best_of": 3})
    assert not any("eval/best_of_win_rate_sft" in row for row in metrics)


def test_one_seed_gives_one_run_to_the_bit_and_another_seed_another(tmp_path):
    """All three run the program that was compiled for the first."""
    final, programs = [], []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        final.append(trained(tmp_path / name, "sea", seed=seed)[0].state.policy.params)
        programs.append(train.update._cache_size())
    first, second, other = final
    assert len(set(programs)) == 1 and programs[0] > 0
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])


class Hesitant:
    """A judge that never answers about prompts in `silent`, and always prefers the second response."""

    def __init__(self, silent):
        self.silent, self.asked = silent, []

    def answers(self, prompts, first, second):
        self.asked += prompts
        answered = np.array([x not in self.silent for x in prompts], bool)
        return protocol.Answers(np.where(answered, 0.0, np.nan), answered)

    def metrics(self):
        return {"oracle/calls": float(len(self.asked))}


def hesitant_run(folder, method, silent, **fields):
    run = small_run(folder, method, **fields)
    run.oracle = Hesitant(silent(run.assets.task.prompts["train"]))
    run.labeller = Labeller(run.oracle)
    return run, loop(run)[0]


@pytest.mark.parametrize("method", ["sea", "passive"])
def test_a_duel_without_an_answer_is_dropped_and_counted(tmp_path, method):
    """Two of eight prompts are never answered: no label, no weight, no place in D_t, no query; the budget is
    spent on the others, and nothing is asked of a judge for the online win rate."""
    run, metrics = hesitant_run(tmp_path, method, lambda xs: xs[:2], **{"sea.burn_in": 100})
    assert run.labeller.num_queries == int(run.state.num_queries) == 16
    assert method != "sea" or int(run.state.experience.size) == 16
    steps = [row for row in metrics if "duel/from_oracle" in row]
    dropped = np.diff([0, *(row["oracle/dropped"] for row in steps)])
    assert run.labeller.num_dropped == dropped.sum() > 0
    for row, n in zip(steps, dropped, strict=True):
        assert row["duel/from_oracle"] + row["duel/void"] == 1.0 and row["duel/void"] >= n / 4
    assert steps[-1]["oracle/calls"] >= 16 + run.labeller.num_dropped
    assert not any("duel/win_rate_reference" in row for row in metrics)
    evaluated = [row for row in metrics if "eval/win_rate_sft" in row]
    assert [row["eval/win_rate_sft"] for row in evaluated] == [0.0, 0.0]  # of the answered ones


def test_a_judge_who_never_answers_ends_the_run_with_no_label(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        run, metrics = hesitant_run(tmp_path, "sea", set, **{"train.max_idle_steps": 3})
    assert run.labeller.num_queries == 0 and run.labeller.num_dropped == 12
    assert "ended after 0 of 16 queries" in caplog.text and "without an answer (12 in all)" in caplog.text
    evaluated = [row for row in metrics if "eval/mean_length" in row]
    assert len(evaluated) == 2 and not any("eval/win_rate_sft" in row for row in evaluated)
    assert not any(name.endswith("_chosen") for row in metrics for name in row)
    before = run.assets.initial_params()
    jax.tree.map(np.testing.assert_array_equal, before, run.state.policy.params)


def test_a_policy_that_only_repeats_itself_ends_the_run(tmp_path, caplog):
    """Without a bound the loop would wait for ever for two different responses."""
    fields = {"train.temperature": 1e-6, "train.max_idle_steps": 3, "eval.every_queries": 4}
    with caplog.at_level("WARNING", logger="absl"):
        _, asked, metrics, _ = trained(tmp_path, "passive", **fields)
    assert asked == [0, 0, 0]
    assert [row["queries"] for row in metrics if "eval/reward" in row] == [0, 0]
    assert "passive seed 0: ended after 0 of 16 queries, since 3 steps in a row" in caplog.text


def test_two_responses_of_one_text_are_no_duel(tmp_path):
    """Other tokens, the same text: void, whoever would have labelled it."""
    run = small_run(tmp_path, "passive")
    run.decode = lambda tokens, mask: [["a b", "a b"], ["a", "b"], ["", ""], ["c", "d"]]
    tokens = jnp.arange(4 * 2 * 6).reshape(4, 2, 6)
    candidates = Candidates(tokens, jnp.ones(tokens.shape, bool), None)
    asked = jnp.array([True, True, False, False])
    duel = Duel(jnp.zeros(4, int), jnp.ones(4, int), asked, jnp.zeros(4, bool))
    duel, texts = train.read_duels(run, candidates, duel)
    assert duel.void.tolist() == [True, False, True, False]
    assert duel.query_oracle.tolist() == [False, True, False, False] and texts[3] == ["c", "d"]
