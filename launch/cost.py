"""Estimates the device-hours of a whole run, and their price beside that of its labels."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

from absl import flags

from sea_jax.methods import METHODS
from sea_jax.types import Config


class Timed(Protocol):
    """A program of a step, as `planner.Program`."""

    @property
    def name(self) -> str:
        """Returns its name, one of `steps.NAMES`."""
        ...

    @property
    def calls(self) -> int:
        """Returns the calls of a step."""
        ...

    @property
    def seconds_a_call(self) -> float:
        """Returns the seconds of a call at the devices' peak."""
        ...


@dataclasses.dataclass(frozen=True)
class Prices:
    """What the planner cannot know.

    Attributes:
        utilization: share of the peak that the programs reach, in (0, 1].
        device_hour: US dollars per hour of one device; 0: unknown.
        label: US dollars per label; 0: unknown.
    """

    utilization: float
    device_hour: float = 0.0
    label: float = 0.0


def define_flags() -> tuple[Any, Any, Any]:
    """Defines the flags of `Prices`; returns their holders, in its order."""
    return (
        flags.DEFINE_float(
            "utilization", 0.3, "Share of the peak that programs reach; estimates the device-hours.",
            lower_bound=1e-3, upper_bound=1.0,
        ),
        flags.DEFINE_float("device_price", 0.0, "US dollars per device-hour; 0: unknown.", lower_bound=0.0),
        flags.DEFINE_float("label_price", 0.0, "US dollars per label; 0: unknown.", lower_bound=0.0),
    )  # fmt: skip


def num_steps(config: Config) -> int:
    """Returns the number of steps that buy the budget at B labels a step, or γ B with synthetic labels.

    Void duels and the burn-in of SEA are left out.
    """
    gamma = config.sea.gamma if METHODS[config.methods[0]].synthetic else 1.0
    return math.ceil(config.train.query_budget / (gamma * config.train.batch_size))


def calls_in_run(config: Config, program: Timed) -> float:
    """Returns how often a run calls a program: the updates between labels as their schedule says."""
    steps, improvement = num_steps(config), METHODS[config.methods[0]].improvement
    if improvement is None:
        return steps * program.calls
    updates = improvement.updates(config, config.train.query_budget)
    if program.name.startswith("improve"):
        return updates
    replays = improvement.samples(config) is None and program.name == "train"
    return steps + updates if replays else steps * program.calls


def device_hours(
    config: Config, programs: Sequence[Timed], devices: int, utilization: float
) -> dict[str, float]:
    """Returns the device-hours of each program in a run.

    Args:
        config: the experiment's; the first of its methods counts.
        programs: of a step; their seconds are those at the peak, on all devices at once.
        devices: number of devices.
        utilization: share of the peak that they reach.
    """
    each = {program.name: calls_in_run(config, program) * program.seconds_a_call for program in programs}
    return {name: seconds * devices / utilization / 3600 for name, seconds in each.items()}


def describe(config: Config, programs: Sequence[Timed], devices: int, prices: Prices) -> str:
    """Returns the estimate of a run in words and numbers."""
    hours = device_hours(config, programs, devices, prices.utilization)
    budget, total = config.train.query_budget, sum(hours.values())
    run = f"a run of {budget:,} labels in {num_steps(config):,} steps"
    lines = [
        f"{run}, device-hours at {prices.utilization:.0%} of the peak (--utilization)",
        *(f"  {name:<17}{number:>11.2f}" for name, number in hours.items()),
        f"  {'sum':<17}{total:>11.2f}",
    ]
    if prices.device_hour:
        lines.append(f"  devices: {total * prices.device_hour:,.2f} $ at {prices.device_hour:g} $ an hour")
    if prices.label:
        lines.append(f"  labels: {budget * prices.label:,.2f} $ at {prices.label:g} $ a label")
    if prices.device_hour and prices.label:
        share = total * prices.device_hour / budget
        lines.append(f"  a label costs {share:.3g} $ of computation beside its {prices.label:g} $")
    return "\n".join(lines)
