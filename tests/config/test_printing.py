"""`--print_config`: every field, its meaning, and what differs from the base."""

import os
import re
import subprocess
import sys

from helpers import ROOT

from configs import sample_efficiency, tldr
from sea_jax.config.checks import flat
from sea_jax.config.printing import describe
from sea_jax.experiment.base_config import base_config, sections_of

LINE = re.compile(r"([ *]) ([\w.]+) = (.*?)(?: \(base: (.*?)\))? {3,}# (\S.*)")


def lines(config):
    """Mark, name, value, base and meaning of every field; headings and overrides left out."""
    said = describe(config, sections_of(config)).splitlines()
    found = [LINE.fullmatch(line) for line in said if line and not line.startswith(("#", "* overrides."))]
    assert all(found)
    return [line.groups() for line in found if line]


def test_the_base_differs_nowhere():
    values = flat(base_config().to_dict())
    found = lines(base_config())
    assert {name: value for _, name, value, _, _ in found} == {k: repr(v) for k, v in values.items()}
    assert {(mark, base) for mark, _, _, base, _ in found} == {(" ", None)}


def test_what_differs_is_marked_with_the_base():
    found = {name: (mark, value, base) for mark, name, value, base, _ in lines(tldr.get_config("dap=ipo"))}
    assert found["train.dap"] == ("*", "'ipo'", "'dpo'") and found["train.beta"] == ("*", "0.2", "0.1")
    assert found["task.path"] == (" ", "''", None) and found["task.num_train"] == ("*", "50000", "0")
    assert found["train.temperature"] == (" ", "0.7", None)
    said = describe(sample_efficiency.get_config(), sections_of(sample_efficiency.get_config()))
    assert "\n* overrides.passive.train.query_budget = 2048" in said


def test_sections_and_valid_values_are_told():
    said = describe(base_config(), sections_of(base_config()))
    heads = re.findall(r"^# (\w+): \S", said, re.MULTILINE)
    assert heads == [section.section_name for section in sections_of(base_config()) if section.section_name]
    assert re.search(
        r"^  train\.dap = 'dpo' +# .* \(one of 'dpo', 'ipo', 'simpo', 'slic'\)$", said, re.MULTILINE
    )
    assert re.search(r"^  sea\.gamma = 0\.7 +# .* \(in \(0, 1\]\)$", said, re.MULTILINE)


def test_the_command_needs_no_workdir_and_trains_nothing(tmp_path):
    call = [sys.executable, "-m", "sea_jax.main", "--print_config", f"--config={ROOT}/configs/quickstart.py"]
    call += ["--config.train.dap=dpp", "--config.seed=3"]  # a config that has mistakes can be looked at, too
    done = subprocess.run(
        call, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "* seed = 3 (base: 0) " in done.stdout and "* train.dap = 'dpp' (base: 'dpo') " in done.stdout
    assert not list(tmp_path.iterdir())
