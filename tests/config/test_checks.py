"""All problems of a config at once: one line each, none that follows from another, none in a crash."""

import types

import pytest

from benchmarks import bad_configs
from configs import quickstart
from sea_jax import main
from sea_jax.config.checks import Checks
from sea_jax.config.flags import fail
from sea_jax.errors import InputError, ServiceError
from sea_jax.experiment import validate


def problems(**fields):
    config = quickstart.get_config()
    config.overrides.update(fields.pop("overrides", {}))
    with config.ignore_type():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return validate.check(config).problems


def test_the_default_has_none():
    assert problems() == []


def test_every_problem_is_told_once_in_the_order_of_the_fields():
    found = problems(
        train__dap="dpp", train__batch_size="four", oracle__flip_probability=1.5, sea__gamma=float("nan"),
        train__per_token=1, ensemble__num_members=0, methods=("sea", "sae"),
    )  # fmt: skip
    assert [line.partition("=")[0] for line in found] == [
        "config.oracle.flip_probability", "config.train.batch_size", "config.train.dap",
        "config.train.per_token", "config.ensemble.num_members", "config.sea.gamma", "config.methods",
    ]  # fmt: skip
    assert found[1] == "config.train.batch_size='four': valid is a whole number of at least 1"
    assert found[2] == "config.train.dap='dpp': valid is one of ('dpo', 'ipo', 'simpo', 'slic')"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"train__batch_size": None}, ["train.batch_size"]),  # micro-batches, mesh, γ, D_t and actors read it
        ({"train__batch_size": 0}, ["train.batch_size"]),
        ({"mesh__data": "all"}, ["mesh.data"]),
        ({"oracle__kind": "crowd"}, ["oracle.kind"]),
        ({"task__name": "cnn"}, ["task.name"]),
        ({"methods": 3}, ["methods"]),
        ({"policy__num_heads": 0}, ["policy.num_heads"]),
        ({"backbone__kind": "encoder"}, ["encoder.folder", "ensemble.prior"]),
        ({"train__micro_batch": 3, "mesh__data": 3}, ["train.micro_batch"]),  # the mesh waits for it
    ],
)
def test_what_depends_on_an_invalid_field_is_left_out(fields, named):
    assert [line.partition("=")[0] for line in problems(**fields)] == [f"config.{name}" for name in named]


def test_a_field_has_one_problem():
    """However many methods it is one of."""
    [line] = problems(methods=("sea", "ee_ts", "uncertainty"), sea__num_responses=1)
    assert line == "config.sea.num_responses=1: valid is at least 2 with methods='sea'"
    checks = Checks(quickstart.get_config())
    for valid in ("the first", "the second"):
        checks.require(False, "train.beta", valid)
    assert checks.problems == ["config.train.beta=0.1: valid is the first"]


def test_overrides():
    """Types, too, before they are merged; and what does not fit together names the override."""
    found = problems(overrides={"sea": {"train": {"batch_size": "many", "dap": 3}}, "passive": {"task": {}}})
    assert found == [
        "config.overrides.sea.train.batch_size='many': valid is a whole number of at least 1",
        "config.overrides.sea.train.dap=3: valid is one of ('dpo', 'ipo', 'simpo', 'slic')",
    ]
    [line] = problems(overrides={"sea": {"train": {"micro_batch": 3}}})
    assert line == "config.overrides.sea.train.micro_batch=3: valid is 0, or a divisor of train.batch_size=4"
    # One method's settings are not those of the others.
    assert problems(overrides={"passive": {"ensemble": {"capacity": 1}}}) == []
    [line] = problems(overrides={"sea": {"ensemble": {"capacity": 3}}})
    assert line.startswith("config.overrides.sea.ensemble.capacity=3: valid is at least train.batch_size=4")


def test_a_field_that_is_not_declared():
    config = quickstart.get_config()
    config.train.batch_sze, config.train.beta = 8, 0.0
    config.trian = {"beta": 1.0}
    found = validate.check(config).problems
    assert found[0] == "config.train.beta=0.0: valid is a number above 0"
    assert found[1].startswith(
        "config.train.batch_sze=8: no such field; valid fields of config.train are ask_ahead, batch_size,"
    )
    assert found[1].endswith("; nearest is train.batch_size")
    said = "no such field; config.trian is no section; nearest is train.beta"
    assert found[2] == f"config.trian.beta=1.0: {said}"


def test_problems_with_the_task_come_with_the_others(tmp_path):
    config = quickstart.get_config()
    config.train.beta, config.eval.num_prompts = -1.0, 1001
    with pytest.raises(InputError) as error:
        validate.load_task(config, tmp_path)
    assert error.value.problems == (
        "config.train.beta=-1.0: valid is a number above 0",
        "config.eval.num_prompts=1001: valid is at most 1000 (heldout split)",
    )


def test_real_text_is_not_loaded_for_a_config_with_problems(tmp_path, monkeypatch):
    from configs import tldr

    monkeypatch.setattr(validate.tasks, "load", lambda *_: pytest.fail("loaded"))
    config = tldr.get_config()
    config.oracle.update(kind="remote")
    config.train.beta = -1.0
    with pytest.raises(InputError, match=r"^config.train.beta=-1.0: valid is a number above 0$"):
        validate.load_task(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("overrides", 3, "config.overrides=3: valid is a ConfigDict of methods"),
        ("overrides.sea", [1], "config.overrides.sea=[1]: valid is a ConfigDict of sections"),
        ("overrides.sea.train", 3, "config.overrides.sea.train=3: valid is a field of one of"),
        ("train", None, "config.train.batch_size: absent"),  # posterior_rl overrides a field of it
        ("task", "mini", "config.task.name: absent"),
        ("oracle.url", "http://[::1", "config.oracle.url='http://[::1': valid is a URL"),  # journals name it
        ("oracle.base_url", "http://a:99999", "config.oracle.base_url='http://a:99999': valid is a URL"),
        ("methods", ("sea", "sea"), "config.methods=('sea', 'sea'): valid is each method once"),
        ("seed", 2**31 - 1, "config.seed=2147483647: valid is in [0, 2147483646]"),
        ("seed", 2**32, "config.seed=4294967296: valid is a number of at most 2147483647 (32 bits)"),
        ("cache_dir", "a\0", "config.cache_dir='a\\x00': valid is a text of UTF-8 without NUL"),
        ("eval.levels", (2.0,), "config.eval.levels=(2.0,): valid is a tuple of numbers in [0, 1]"),
        ("other", {}, "config.other={}: no such field"),
        ("overrides.posterior_rl.train", {"query_budget": {"a": 1}}, "query_budget.a=1: valid is a field of"),
        ("train.query_budget", {"a": 1}, "config.train.query_budget={'a': 1}: valid is"),  # overridden, too
        ("encoder.folder", "x" * 999 + "\0", "xxx…: valid is a text of UTF-8 without NUL"),
    ],
)
def test_a_value_of_no_config_is_named(name, value, said):
    config = quickstart.get_config()
    config.num_seeds = 2
    bad_configs.put(config, name, value)
    found = validate.check(config).problems
    assert any(said in line for line in found)


def test_collecting():
    checks = Checks(quickstart.get_config())
    with checks.collecting("policy.folder"):
        raise InputError("one", "two")
    assert checks.problems == ["one", "two"] and not checks.sound("policy") and checks.sound("train")
    with pytest.raises(InputError, match=r"^one\ntwo$"):
        checks.raise_problems()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("a\n b"), "error: a b\n"),
        (InputError("a", "b"), "2 problems:\nerror: a\nerror: b\n"),
        (ServiceError("gone\naway"), "error: gone away\n"),
        ("text", "error: text\n"),
    ],
)
def test_fail(capsys, error, said):
    with pytest.raises(SystemExit) as exit:
        fail(error)
    assert exit.value.code == 2 and capsys.readouterr().err == said


def test_main_prints_all(monkeypatch, capsys, tmp_path):
    config = quickstart.get_config()
    config.train.beta, config.sea.gamma, config.cache_dir = -1.0, 0.0, str(tmp_path / "cache")
    values = dict(
        _CONFIG=config,
        _WORKDIR=str(tmp_path / "runs"),
        _PREPARE=False,
        _PRINT=False,
        _EXTEND=False,
        _LABELS="",
        _PARTIAL=False,
        _COORDINATOR="",
    )
    for name, value in values.items():
        monkeypatch.setattr(main, name, types.SimpleNamespace(value=value))
    monkeypatch.setattr(main, "_join", lambda: None)
    monkeypatch.setattr(main, "prepare_jax", lambda *_: None)
    with pytest.raises(SystemExit) as exit:
        main.main(["sea_jax"])
    out, err = capsys.readouterr()
    assert (
        exit.value.code == 2
        and not out
        and err
        == (
            "2 problems:\nerror: config.train.beta=-1.0: valid is a number above 0\n"
            "error: config.sea.gamma=0.0: valid is in (0, 1]\n"
        )
    )
    assert not (tmp_path / "runs").exists()
