"""Watches: on rows made by hand, and in a run that one of them ends."""

import json
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_run import small_run

from sea_jax.config.watch import WATCHES
from sea_jax.errors import WatchError
from sea_jax.experiment import run as experiment
from sea_jax.experiment.base_config import base_config
from sea_jax.experiment.watches import Facts, Watches, facts_of, kl_per_token, length_bounds
from sea_jax.experiment.workdir import claim_workdir, difference
from sea_jax.methods import METHODS
from sea_jax.oracles import labeller
from sea_jax.runtime.run_folder import read_warnings

FACTS = Facts(members=20, choice=20, of_policy=True, longest=32)
OFF = {
    "agreement": 0.0,
    "distinct": 0.0,
    "kl": math.inf,
    "length": math.inf,
    "accuracy": 0.0,
    "drift": math.inf,
}
# Metrics of a healthy step, and of each watch those that set it off.
WELL = {
    "ensemble/probability_std": 0.2, "duel/distinct_responses": 2.2, "rloo/kl": 11.0, "rloo/length": 20.0,
    "eval/mean_length": 20.0, "ensemble/accuracy_chosen": 0.6, "ensemble/nll_chosen": 0.7,
}  # fmt: skip
ILL = {
    "agreement": {"ensemble/probability_std": 0.001},
    "distinct": {"duel/distinct_responses": 1.0},
    "kl": {"rloo/kl": 19.5},
    "length": {"eval/mean_length": 9.0},
    "accuracy": {"ensemble/accuracy_chosen": 0.4},
    "drift": {"ensemble/nll_chosen": 1.2},
}
SILENT = {  # of a method that has nothing to watch
    "agreement": {"members": 1}, "distinct": {"choice": 2}, "kl": {"of_policy": False},
    "accuracy": {"members": 0}, "drift": {"members": 0},
}  # fmt: skip


def watches(facts=FACTS, saved=None, queries=0, **fields):
    config = base_config().watch
    config.update(fields)
    return Watches(config, facts, queries, saved)


def seen(watched, rows):
    """The alarms of rows (labels, metrics), each kept as a run keeps it."""
    found = []
    for queries, metrics in rows:
        for alarm in watched.see(queries, metrics):
            watched.note(alarm)
            found.append(alarm)
    return found


def ill(name, first=160, last=400):
    """A run of four labels a step that is ill from a number of labels on; it began with longer responses."""
    rows = [(q, WELL | (ILL[name] if q >= first else {})) for q in range(4, last, 4)]
    return [(0, {"eval/mean_length": 30.0}), *rows]


@pytest.mark.parametrize("name", WATCHES)
def test_a_watch_warns_once_and_says_what_it_saw(name):
    [alarm] = seen(watches(), ill(name))
    assert alarm.watch == name and 160 <= alarm.queries < 280 and alarm.bound == base_config().watch[name]
    assert f"{alarm.bound:g}" in alarm.said or name == "length"
    assert alarm.advice and "\n" not in alarm.said + alarm.advice
    assert (alarm.value < alarm.bound) == (name in ("agreement", "distinct", "length", "accuracy"))


@pytest.mark.parametrize("name", WATCHES)
def test_a_watch_is_silent_where_it_is_off_or_does_not_apply(name):
    assert seen(watches(**{name: OFF[name]}), ill(name)) == []
    if name in SILENT:
        assert seen(watches(FACTS._replace(**SILENT[name])), ill(name)) == []


def test_a_healthy_run_warns_of_nothing():
    assert seen(watches(), [(q, WELL) for q in range(4, 400, 4)]) == []
    assert seen(watches(), [(q, {}) for q in range(4, 400, 4)]) == []
    assert seen(watches(), [(q, dict.fromkeys(WELL, math.nan)) for q in range(4, 400, 4)]) == []


def test_means_are_those_of_the_last_labels_and_steps():
    """Steps buy 4 and 2 labels in turn; those up to 12 are left out; the means by NumPy."""
    rng = np.random.default_rng(0)
    bought = np.tile([4, 2], 40)
    queries, values = bought.cumsum(), rng.uniform(0.55, 0.75, 80)
    values[:4] = 0.0
    watched = watches(after=12, accuracy_labels=18, steps=7, accuracy=0.62, distinct=10.0)
    alarms = {}
    for q, value in zip(queries, values, strict=True):
        row = {"ensemble/accuracy_chosen": value, "duel/distinct_responses": 15 * value}
        alarms |= {alarm.watch: alarm for alarm in seen(watched, [(int(q), row)])}
    means = {
        int(queries[i]): np.average(values[i - 5 : i + 1], weights=bought[i - 5 : i + 1])
        for i in range(9, 80)
    }
    first = next(q for q, mean in means.items() if mean < 0.62)
    assert alarms["accuracy"].queries == first and np.isclose(alarms["accuracy"].value, means[first])
    steps = {int(queries[i]): 15 * values[i - 6 : i + 1].mean() for i in range(6, 80)}
    first = next(q for q, mean in steps.items() if mean < 10.0)
    assert alarms["distinct"].queries == first and np.isclose(alarms["distinct"].value, steps[first])


@pytest.mark.parametrize("name", WATCHES)
def test_a_watch_goes_on_after_a_stop(name):
    """At every row, through JSON: before, at and after the alarm."""
    rows = ill(name, last=300)
    whole = watches()
    expected = seen(whole, rows)
    for stop in range(0, len(rows), 7):
        before = watches()
        found = seen(before, rows[:stop])
        queries = rows[stop - 1][0] if stop else 0
        after = watches(saved=json.loads(json.dumps(before.saved())), queries=queries)
        assert found + seen(after, rows[stop:]) == expected
        assert after.saved() == whole.saved()


def test_another_bound_arms_a_watch_again():
    stopping = watches(stop=("kl",))
    assert len(seen(stopping, ill("kl"))) == 1
    alarm = stopping.ending()
    assert alarm is not None and alarm.watch == "kl"
    saved = stopping.saved()
    assert watches(saved=saved).ending() is None
    assert watches(saved=saved, stop=("kl",), kl=0.9).ending() is None
    assert watches(saved=saved, stop=("length",)).ending() is None
    assert watches(saved=saved, stop=("kl",)).ending() == alarm
    assert [a.bound for a in seen(watches(saved=saved, queries=400, kl=0.9), [(404, WELL | ILL["kl"])])] == [
        0.9
    ]


def test_kl_is_that_of_the_last_update_between_labels_or_of_the_pairs():
    pairs = {
        "policy/log_ratio_chosen": 6.0, "policy/log_ratio_rejected": 2.0, "duel/length_chosen": 12.0,
        "duel/length_rejected": 8.0,
    }  # fmt: skip
    assert kl_per_token(pairs) == 0.4
    assert kl_per_token(pairs | {"rloo/kl": 9.0, "rloo/length": 18.0}) == 0.5
    assert kl_per_token({"duel/length_chosen": 12.0, "duel/length_rejected": 8.0}) is None


def test_lengths_end_at_the_limit_of_responses_where_they_had_room():
    assert length_bounds(20.0, 100, 2.0) == (10.0, 40.0)
    assert length_bounds(35.0, 40, 2.0) == (17.5, 38.0)
    assert length_bounds(39.5, 40, 2.0) == (19.75, 79.0)


def test_facts_of_methods():
    config = base_config()
    found = {name: facts_of(config, method, 9) for name, method in METHODS.items()}
    assert found["sea"] == Facts(20, 20, True, 9) and found["posterior_rl"] == Facts(256, 20, True, 9)
    assert found["passive"] == found["passive_replay"] == Facts(0, 0, True, 9)
    assert found["offline"] == Facts(0, 0, False, 9) and found["posterior_rl_offline"].of_policy
    assert found["apl"] == Facts(0, 8, True, 9) and found["posterior_rl_random"].choice == 2


def test_the_fields_of_watches_may_change_in_a_work_directory(tmp_path):
    config = base_config()
    claim_workdir(config, tmp_path)
    config.watch.update(stop=("kl",), kl=2.0)
    config.overrides.sea = ConfigDict(dict(watch=dict(kl=3.0)))
    claim_workdir(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["watch"]["kl"] == 2.0
    assert difference({}, {"watch": {"kl": 1.0}}) is None  # of an older version
    assert difference({"overrides": {"sea": {"sea": {"gamma": 1.0}}}}, {}) is not None


def test_a_watch_ends_a_run_that_goes_on_with_another_bound(tmp_path, monkeypatch, caplog, capsys):
    """It ends saved, and again at once; then it goes on to what it would have been without the watch."""
    policies = {}
    keep = lambda config, folder, model, params, task: policies.update({folder.parents[2].name: params})  # noqa: E731
    monkeypatch.setattr(experiment.policy, "save_policy", keep)

    small = small_run(tmp_path / "small", "sea", **{"checkpoint.every_s": 1e6, "watch.steps": 2})
    small.config.progress = True

    def train(place, **fields):
        config = ConfigDict(small.config.to_dict())
        config.watch.update(dict(distinct=19.0) | fields)
        experiment.train_one(config, small.assets, "sea", 0, tmp_path / place)
        return tmp_path / place / "runs/sea-seed0"

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    whole = train("whole")
    said = [record.getMessage() for record in caplog.records if "watch distinct" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("sea seed 0, 8 labels: watch distinct: ")
    assert "WARNING=distinct" in capsys.readouterr().err
    with pytest.raises(WatchError) as end:
        train("ended", stop=("distinct",))
    message = str(end.value)
    assert message.startswith("sea seed 0: ended by watch distinct after 8 of 16 labels, and saved: ")
    assert "below 19; " in message and "config.watch.distinct than 19" in message and "\n" not in message

    with monkeypatch.context() as patch:
        patch.setattr(labeller.protocol, "compare", None)  # nobody is asked
        with pytest.raises(WatchError) as again:
            train("ended", stop=("distinct",))
    assert str(again.value) == message
    ended = train("ended", stop=("distinct",), distinct=0.0)
    assert rows(ended) == rows(whole) and read_warnings(ended) == read_warnings(whole) != []
    jax.tree.map(np.testing.assert_array_equal, policies["ended"], policies["whole"])
    assert (ended / "done.json").exists()
