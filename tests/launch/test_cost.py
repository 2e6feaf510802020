"""The estimate of a run's device-hours, against counts by hand."""

import dataclasses

import numpy as np
import pytest

from configs import quickstart
from launch import cost


@dataclasses.dataclass(frozen=True)
class Program:
    name: str
    calls: int
    seconds_a_call: float


def config_of(method, **fields):
    config = quickstart.get_config()
    config.methods = (method,)
    config.train.query_budget = 100
    config.update_from_flattened_dict(fields)
    return config


def test_a_passive_run():
    programs = [Program("train", 1, 2.0), Program("generate", 3, 1.0)]
    hours = cost.device_hours(config_of("passive"), programs, devices=8, utilization=0.5)
    # 25 steps of 4 labels; 50 s and 75 s at the peak, on 8 devices at half of it
    assert hours == pytest.approx({"train": 50 * 8 / 0.5 / 3600, "generate": 75 * 8 / 0.5 / 3600})


def test_synthetic_duels_need_more_steps():
    assert cost.num_steps(config_of("sea", **{"sea.gamma": 0.5})) == 50
    assert cost.num_steps(config_of("sea_oracle_only", **{"sea.gamma": 0.5})) == 25


def test_updates_between_labels_count_as_scheduled():
    schedule = {"rloo.burst_labels": (16, 32), "rloo.burst_updates": (40, 80), "rloo.updates_per_label": 1.5}
    programs = [Program("train", 1, 1.0), Program("improve", 6, 1.0), Program("improve_generate", 6, 2.0)]
    hours = cost.device_hours(config_of("posterior_rl", **schedule), programs, devices=1, utilization=1.0)
    updates = 40 + 80 + 1.5 * (100 - 32)
    assert np.multiply(list(hours.values()), 3600) == pytest.approx([25, updates, 2 * updates])


def test_replayed_labels_are_further_calls_of_train():
    config = config_of("passive_replay", **{"replay.updates_per_label": 2.0})
    hours = cost.device_hours(config, [Program("train", 9, 1.0), Program("generate", 1, 1.0)], 1, 1.0)
    assert np.multiply(list(hours.values()), 3600) == pytest.approx([25 + 200, 25])


def test_prices_are_told_where_they_are_known():
    config, programs = config_of("passive"), [Program("train", 1, 3600.0)]
    said = cost.describe(config, programs, 1, cost.Prices(0.5, device_hour=2.0, label=0.1))
    assert "a run of 100 labels in 25 steps, device-hours at 50% of the peak" in said
    assert "devices: 100.00 $ at 2 $ an hour" in said and "labels: 10.00 $ at 0.1 $ a label" in said
    assert "a label costs 1 $ of computation beside its 0.1 $" in said
    assert "$" not in cost.describe(config, programs, 1, cost.Prices(0.5))
