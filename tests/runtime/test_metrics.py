"""Rows of metrics.jsonl: what is left out, and what is null."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import update
from tensorboardX.proto.event_pb2 import Event

from sea_jax.errors import InputError
from sea_jax.losses import mean_or_nan
from sea_jax.runtime import metrics
from sea_jax.runtime.metrics import MetricWriter

OVER_LABELS = (
    "ensemble/accuracy_chosen", "ensemble/confidence_chosen", "ensemble/nll_chosen",
    "ensemble/probability_std", "ensemble/surprise",
)  # fmt: skip
OVER_DUELS = (
    "policy/implicit_accuracy", "policy/log_ratio_chosen", "policy/log_ratio_rejected",
    "duel/length_chosen", "duel/length_rejected",
)  # fmt: skip


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensorboard_events(file):
    """The events of a file of TFRecords: length, checksum, event, checksum."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


def test_a_metric_that_measured_nothing_is_left_out(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(3, 8, {"a": 1.5, "nothing": float("nan"), "zero": 0.0, "infinite": float("inf")})
    assert rows(tmp_path) == [{"step": 3, "queries": 8, "a": 1.5, "zero": 0.0, "infinite": None}]


def test_files_of_an_earlier_run_are_replaced(tmp_path):
    for value in (1.0, 2.0):
        with MetricWriter(tmp_path) as writer:
            writer.write(0, 0, {"a": value})
            writer.write_samples([{"prompt": value}])
    assert [row["a"] for row in rows(tmp_path)] == [2.0]
    assert (tmp_path / "samples.jsonl").read_text() == '{"prompt": 2.0}\n'
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_mean_counts_by_weight_and_is_nan_over_nothing():
    values = jnp.array([1.0, 2.0, 5.0])
    assert mean_or_nan(values, jnp.array([1.0, 0.0, 1.0])) == 3
    assert jnp.isnan(mean_or_nan(values, jnp.zeros(3)))


@pytest.mark.parametrize("duels", ["void", "synthetic"])
def test_a_mean_over_no_duel_is_absent_and_the_step_is_finite(stepped, step, tmp_path, duels):
    """No duel at all, or none that the oracle judged: a mean over them is not 0."""
    _, _, ref_params, batch = step
    settings, (state, _) = stepped
    if duels == "void":
        batch = batch._replace(weight=np.zeros_like(batch.weight))
    else:
        batch = batch._replace(from_oracle=np.zeros_like(batch.from_oracle))
    _, found = update(settings=settings, state=state, ref_params=ref_params, batch=batch)
    values = {name: float(value) for name, value in found.items()}
    with MetricWriter(tmp_path) as writer:
        writer.write(0, 0, values)
    unmeasured = set(OVER_LABELS + (OVER_DUELS if duels == "void" else ()))
    [row] = rows(tmp_path)
    assert row.keys() == {"step", "queries", *values} - unmeasured
    assert unmeasured <= values.keys() and row["step/finite"] == 1


def test_a_run_is_marked_as_unfinished_before_its_rows_are_replaced(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "done.json").write_text("{}")
    order, remove = [], metrics.remove_summary
    monkeypatch.setattr(
        metrics, "remove_summary",
        lambda folder: order.append((folder / "metrics.jsonl").read_text()) or remove(folder),
    )  # fmt: skip
    with MetricWriter(tmp_path):
        assert order == ["{}\n"] and not (tmp_path / "done.json").exists()


def test_a_restored_run_continues_its_files(tmp_path):
    """Rows after the checkpoint are cut off, and the event file holds each row once."""
    with MetricWriter(tmp_path) as writer:
        writer.write(0, 4, {"a/b": 1.0})
        writer.write_samples([{"n": 1}])
        kept = writer.positions()
        writer.write(1, 8, {"a/b": 2.0})
        writer.write_samples([{"n": 2}])
    for _ in range(2):
        with MetricWriter(tmp_path, kept) as writer:
            writer.write(1, 8, {"a/b": 3.0})
    assert [row["a/b"] for row in rows(tmp_path)] == [1.0, 3.0]
    assert (tmp_path / "samples.jsonl").read_text() == '{"n": 1}\n'
    [events] = tmp_path.glob("events.out.tfevents.*")
    found = [(e.step, v.simple_value) for e in tensorboard_events(events) for v in e.summary.value]
    assert found == [(4, 1.0), (8, 3.0)]
    with pytest.raises(InputError, match=r"metrics\.jsonl: \d+ bytes; valid: the 99999 it had"):
        MetricWriter(tmp_path, kept | {"metrics.jsonl": 99_999})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"queries": 9}{"queries": 9}', "line 2: not JSON"),
        ("[1]", "line 2: holds [1], no JSON object"),
        ('{"a": 1}', "line 2: queries=None; valid: a whole number of at least 8"),
        ('{"queries": 7}', "line 2: queries=7; valid: a whole number of at least 8"),
        ('{"queries": 9, "a": "b"}', "line 2: a='b'; valid: a finite number or null"),
        ('{"queries": 9, "a": NaN}', "line 2: a=nan"),
    ],
)
def test_a_row_that_no_run_writes_is_named(tmp_path, row, said):
    """Such as those of two processes that wrote into one file: a restored run does not go on from them."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"queries": 8}}\n{row}\n')
    kept = {"metrics.jsonl": (tmp_path / "metrics.jsonl").stat().st_size}
    with pytest.raises(InputError) as error:
        MetricWriter(tmp_path, kept)
    assert str(error.value).startswith(f"{tmp_path}/metrics.jsonl, {said}")


def test_a_row_that_the_checkpoint_cuts_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"queries": 8}\n{"queries": 9}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: a row was cut; valid: the 20 bytes"):
        MetricWriter(tmp_path, {"metrics.jsonl": 20})
