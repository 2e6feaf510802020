"""Properties: a bad config, a damaged file or a damaged journal ends in our error that names it, or was still valid.

The cases are those of `python -m benchmarks.bad_input`, which makes thousands of them.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import bad_configs, bad_files, bad_input
from sea_jax.errors import InputError
from sea_jax.report import figure

few = settings(
    derandomize=True, deadline=None, database=None, max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)  # fmt: skip
CHEAP = [kind for kind in (*bad_files.FILES, *bad_files.JOURNALS) if not kind.startswith("model")]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Runs cases on the whole files that it has made; leaves out the figure, which takes a second."""
    patch = pytest.MonkeyPatch()
    patch.setattr(figure, "draw", lambda *_: None)
    yield bad_input.Trial(tmp_path_factory.mktemp("input"), on_task=False)
    patch.undo()


def ends_well(trial, kind, rng):
    found = trial(kind, rng)
    assert found.verdict in (bad_input.NAMED, bad_input.VALID), found


@few
@given(rng=st.randoms(use_true_random=False))
def test_bad_configs(trial, rng):
    ends_well(trial, bad_input.CONFIGS, rng)


@pytest.mark.parametrize("kind", CHEAP)
@few
@given(rng=st.randoms(use_true_random=False))
def test_damaged_files(trial, kind, rng):
    ends_well(trial, kind, rng)


@settings(few, max_examples=25)
@given(
    kind=st.sampled_from([kind for kind in bad_files.FILES if kind.startswith("model")]),
    rng=st.randoms(use_true_random=False),
)
def test_damaged_models(trial, kind, rng):
    ends_well(trial, kind, rng)


@pytest.mark.parametrize("kind", (*bad_files.FILES, *bad_files.JOURNALS))
def test_whole_files_are_valid(trial, kind):
    """Else the properties above would hold of readers that accept nothing."""
    case = (bad_files.FILES | bad_files.JOURNALS)[kind]
    bad_files.copy(trial.place, kind, trial.place / "now")
    assert case.use(trial.place / "now")


@pytest.mark.parametrize("name", bad_configs.OPTIONS)
def test_configs_without_a_mistake_are_valid(trial, name):
    for option in bad_configs.OPTIONS[name] or ("",):
        config = bad_configs.load(name, option)
        bad_configs.use_folders(config, trial.folders)
        bad_configs.check(bad_configs.BadConfig(config, (), False, "", name, ""), None)


@pytest.mark.parametrize("fields", bad_configs.CONTRADICTIONS, ids=" ".join)
def test_contradictions_are_named(fields):
    """On the config that they contradict; the command draws other configs too."""
    config = bad_configs.load("base")
    for name, value in fields.items():
        bad_configs.put(config, name, value)
    bad = bad_configs.BadConfig(config, tuple(fields), True, "", "base", "")
    if fields.get("train.batch_size") == 30_000:  # of the task's 20,000 prompts: found with the task alone
        return
    with pytest.raises(InputError) as error:
        bad_configs.check(bad, None)
    assert bad_configs.named(error.value, bad)


def test_the_commands_table():
    counts = bad_input.table({"a": bad_input.Counter(named=3, hang=1)})
    assert counts.splitlines()[1].split() == ["a", "4", "3", "0", "0", "0", "0", "1"]
    assert bad_input.random_of("a", 3).random() == random.Random("a 3").random()
