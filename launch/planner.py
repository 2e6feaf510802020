"""Compiles an experiment's programs for a topology and prints what they need; `launch.plan` runs it."""

import dataclasses
import math
import time
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from launch import cost, flops, hlo, topology
from launch.steps import Experiment, Step, device_bytes
from sea_jax.config.flags import fail, parse, read_config
from sea_jax.errors import InputError
from sea_jax.methods import METHODS
from sea_jax.models.remat import POLICIES
from sea_jax.types import Config

GIB, MIB = topology.GIB, 2**20
_HEAD = "  {:<16}{:>9}{:>11}{:>13}{:>9}{:>6}{:>9}{:>11}{:>11}"


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled step; all bytes are per device.

    Attributes:
        name: name of the step.
        inputs: bytes of the arguments that are not resident, such as a batch.
        gradients: bytes of the policy's f32 gradients, sharded as the policy; 0 except in training.
        activations: bytes of all other temporary buffers.
        outputs: bytes of the results that do not reuse an argument's buffer.
        flops: operations of the step on all devices together.
        seconds_a_call: seconds that the operations of one call take at the devices' peak.
        traffic: traffic of the collectives in all calls of a step.
        calls: calls of the program per step.
        seconds: compilation time.
    """

    name: str
    inputs: int
    gradients: int
    activations: int
    outputs: int
    flops: float
    seconds_a_call: float
    traffic: hlo.Traffic
    calls: int
    seconds: float

    @property
    def at_peak(self) -> float:
        """Returns the seconds that the operations of a step take at the devices' peak."""
        return self.calls * self.seconds_a_call

    @property
    def own(self) -> int:
        """Returns the bytes that the program needs in addition to resident memory."""
        return self.inputs + self.gradients + self.activations + self.outputs


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment on a topology: bytes per device of each resident group, and the programs by name."""

    topology: topology.Topology
    config: Config
    resident: dict[str, int]
    programs: dict[str, Program]

    @property
    def usable(self) -> float:
        device = self.topology.device
        return device.memory * device.usable

    @property
    def unit(self) -> tuple[str, int]:
        """Returns the unit of the tables, and its size in bytes."""
        return ("GiB", GIB) if max(map(self.needed, self.programs)) > GIB else ("MiB", MIB)

    def needed(self, name: str) -> int:
        """Returns the bytes in use per device while a program runs."""
        return sum(self.resident.values()) + self.programs[name].own

    @property
    def fits(self) -> bool:
        return all(self.needed(name) <= self.usable for name in self.programs)


def make_plan(config: Config, where: topology.Topology, names: tuple[str, ...] = ()) -> Plan:
    """Compiles programs for a topology.

    Args:
        config: a config whose mesh has as many devices as the topology.
        where: the topology.
        names: names of the programs; empty: all.
    """
    experiment = Experiment(config, topology.devices(where))
    resident = {name: device_bytes(tree) for name, tree in experiment.resident.items()}
    programs = {
        name: compile_step(experiment, experiment.step(name), where) for name in names or experiment.names
    }
    return Plan(where, config, resident, programs)


def compile_step(experiment: Experiment, step: Step, where: topology.Topology) -> Program:
    """Compiles one program and returns what it needs."""
    start = time.perf_counter()
    compiled = step.traced.lower().compile()
    seconds = time.perf_counter() - start
    stats = compiled.memory_analysis()
    resident = sum(device_bytes(experiment.resident[group]) for group in step.reads)
    gradients = device_bytes(experiment.params) if step.name == "train" else 0
    traffic = hlo.collectives(compiled.as_text(), where.count)
    traffic.sent = {kind: sent * step.calls for kind, sent in traffic.sent.items()}
    jaxpr = (step.usual or step.traced).jaxpr
    alone = flops.count(jaxpr, step.while_turns, where.device.seconds)
    return Program(
        step.name,
        inputs=max(stats.argument_size_in_bytes - resident, 0),
        gradients=gradients,
        activations=max(stats.temp_size_in_bytes - gradients, 0),
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        flops=step.calls * flops.count(jaxpr, step.while_turns),
        seconds_a_call=alone / (step.shared_by or where.count),
        traffic=traffic,
        calls=step.calls,
        seconds=seconds,
    )


def _copy(config: Config) -> Config:
    return ConfigDict(config.to_dict())


def with_mesh(config: Config, count: int, tensor: int | None = None) -> Config:
    """Returns a copy of the config whose mesh has `count` devices.

    A mesh of that size is kept unless `tensor` is given. Otherwise fsdp has at most one device per prompt,
    and tensor has the remaining factor; micro-batches are raised to a multiple of fsdp.

    Args:
        config: config of the experiment.
        count: number of devices.
        tensor: size of the tensor axis; None: chosen as above.
    """
    config = _copy(config)
    if tensor is None and math.prod(config.mesh.values()) == count:
        return config
    B = config.train.batch_size
    size: int = tensor or -(-count // B)
    config.mesh.update(dict(data=1, fsdp=count // size, tensor=size))
    for part in (config.train, config.sampler):
        part.micro_batch = raised(part.micro_batch or B, count // size, B)
    return config


def raised(size: int, shards: int, most: int) -> int:
    """Returns the smallest multiple of `shards`, at least `size`, that divides `most`; else `most`."""
    return next((n for n in range(shards, most, shards) if most % n == 0 and n >= size), most)


_COLUMNS = ("program", "inputs", "gradients", "activations", "needed", "fits", "sent", "TFLOP", "at peak")


def describe(plan: Plan, prices: cost.Prices) -> str:
    """Returns the tables of a plan and the cost of a run."""
    cfg, device, count = plan.config, plan.topology.device, plan.topology.count
    B = cfg.train.batch_size
    mesh = " ".join(f"{axis}={size}" for axis, size in cfg.mesh.items())
    seconds = sum(p.seconds for p in plan.programs.values())
    micro = f"{cfg.train.micro_batch or B} in training, {cfg.sampler.micro_batch or B} in sampling"
    name, unit = plan.unit
    M = METHODS[cfg.methods[0]].num_responses(cfg)
    lines = [
        f"{cfg.policy.folder or 'the embedded policy'} on {plan.topology}: {count} devices",
        f"mesh {mesh}; remat {cfg.policy.remat}; batch {B}, M={M}; micro-batch {micro}",
        f"memory of a device: {device.memory / GIB:.1f} GiB, of which {plan.usable / GIB:.1f} for arrays",
        f"\nresident, {name} a device",
        *(f"  {group:<12}{size / unit:>9.2f}" for group, size in plan.resident.items() if size),
        f"  {'sum':<12}{sum(plan.resident.values()) / unit:>9.2f}",
        f"\na step, {name} a device; operations on all devices",
        _HEAD.format(*_COLUMNS),
        *(_row(plan, p, unit) for p in plan.programs.values()),
        f"\ncollectives, {name} that a device sends in a step",
        *(_sent(p, unit) for p in plan.programs.values()),
        "\n" + cost.describe(cfg, list(plan.programs.values()), count, prices),
        f"\n{'fits' if plan.fits else 'DOES NOT FIT'} (compiled in {seconds:.0f} s)\n",
    ]
    return "\n".join(lines)


def _row(plan: Plan, p: Program, unit: int) -> str:
    needed = plan.needed(p.name)
    parts = [p.inputs, p.gradients, p.activations + p.outputs, needed]
    return _HEAD.format(
        p.name, *(f"{size / unit:.2f}" for size in parts), "yes" if needed <= plan.usable else "NO",
        f"{p.traffic.total / unit:.2f}", f"{p.flops / 1e12:.2f}", f"{p.at_peak:.3f} s",
    )  # fmt: skip


def _sent(p: Program, unit: int) -> str:
    parts = [f"{kind} {sent / unit:.2f}" for kind, sent in p.traffic.sent.items() if sent]
    bound = " (at most, as a loop ends by data)" if p.traffic.bounded else ""
    return f"  {p.name:<17}{', '.join(parts) or 'none'}{bound if parts else ''}"


def growth(plans: list[Plan]) -> str:
    """Returns a Markdown table of memory and traffic per device for each topology."""
    names, (unit, size) = list(plans[0].programs), plans[0].unit
    head = ["topology", "devices", "mesh", f"resident {unit}"]
    head += [f"{name}: {what} {unit}" for name in names for what in ("needed", "sent")]
    rows = [head, ["---"] * len(head)]
    for plan in plans:
        mesh = " ".join(f"{axis}={size}" for axis, size in plan.config.mesh.items() if size > 1)
        row = [
            str(plan.topology),
            str(plan.topology.count),
            mesh,
            f"{sum(plan.resident.values()) / size:.2f}",
        ]
        for name, p in plan.programs.items():
            row += [f"{plan.needed(name) / size:.2f}", f"{p.traffic.total / size:.2f}"]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def search(config: Config, where: topology.Topology) -> Plan | None:
    """Searches for a mesh, micro-batches and remat that fit with little communication and recomputation.

    The search tries meshes from tensor=1 up. For each, it finds the largest micro-batches that fit under full
    remat, then the remat that saves the most activations and still fits with these micro-batches.

    Returns:
        The plan of the first mesh that fits; None if no mesh fits.
    """
    for mesh in meshes(config, where.count):
        try:
            chosen = _fit(mesh, where)
        except InputError as error:  # the tensor axis does not divide the heads or a width
            print(f"  tensor={mesh.mesh.tensor}: {error}", flush=True)
            continue
        if chosen is not None:
            return chosen
    return None


def meshes(config: Config, count: int) -> list[Config]:
    """Returns a config per size of the tensor axis for which data · fsdp divides the batch."""
    B = config.train.batch_size
    sizes = [t for t in range(1, count + 1) if count % t == 0 and B % (count // t) == 0]
    return [with_mesh(config, count, t) for t in sizes]


def _fit(config: Config, where: topology.Topology) -> Plan | None:
    config.policy.remat = "full"
    if not make_plan(config, where, names=("features",)).fits:
        print(f"  tensor={config.mesh.tensor}: too much is resident", flush=True)
        return None
    for name, part in (("generate", config.sampler), ("train", config.train)):
        if not _shrink(config, where, name, part):
            return None
    for remat in ("none", *(r for r in POLICIES if r not in ("none", "full"))):
        config.policy.remat = remat
        if _tried(config, where, "train"):
            break
    else:
        config.policy.remat = "full"
    return make_plan(config, where)


def _shrink(config: Config, where: topology.Topology, name: str, part: Any) -> bool:
    """Sets the largest micro-batch with which a program fits; returns whether there is one."""
    B, shards = config.train.batch_size, config.mesh.data * config.mesh.fsdp
    for size in sorted((n for n in range(shards, B + 1, shards) if B % n == 0), reverse=True):
        part.micro_batch = size
        if _tried(config, where, name):
            return True
    return False


def _tried(config: Config, where: topology.Topology, name: str) -> bool:
    plan = make_plan(config, where, names=(name,))
    batch = {"train": config.train, "generate": config.sampler}[name].micro_batch
    print(
        f"  tensor={config.mesh.tensor} {name}: micro-batch {batch}, remat {config.policy.remat}: "
        f"{plan.needed(name) / GIB:.1f} of {plan.usable / GIB:.1f} GiB",
        flush=True,
    )
    return plan.fits


def proposal(plan: Plan) -> str:
    """Returns the flags that reproduce a plan."""
    cfg = plan.config
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in cfg.mesh.items() if size > 1)
    return (
        f"{mesh} --config.policy.remat={cfg.policy.remat} "
        f"--config.train.micro_batch={cfg.train.micro_batch} "
        f"--config.sampler.micro_batch={cfg.sampler.micro_batch}"
    )


def main(argv: list[str]) -> None:
    """Prints the plans; exits with status 1 if one does not fit."""
    del argv
    config = read_config(_CONFIG)
    try:
        plans = [_told(config, topology.parse(text)) for text in _TOPOLOGY.value]
    except InputError as error:
        fail(error)
    if len(plans) > 1:
        print("\n" + growth(plans))
    raise SystemExit(0 if all(plan.fits for plan in plans) else 1)


def _prices() -> cost.Prices:
    return cost.Prices(_UTILIZATION.value, _DEVICE_PRICE.value, _LABEL_PRICE.value)


def _told(config: Config, where: topology.Topology) -> Plan:
    if not _SEARCH.value:
        plan = make_plan(with_mesh(config, where.count), where)
        print(describe(plan, _prices()), flush=True)
        return plan
    print(f"searching for {where}", flush=True)
    plan = search(config, where)
    if plan is None:
        print(f"nothing fits {where}: valid are more devices, or ones with more memory")
        raise SystemExit(1)
    print(f"{describe(plan, _prices())}\nproposed: {proposal(plan)}", flush=True)
    return plan


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "See launch.plan.")
    _TOPOLOGY = flags.DEFINE_list("topology", None, "See launch.plan.", required=True)
    _SEARCH = flags.DEFINE_bool("search", False, "See launch.plan.")
    _UTILIZATION, _DEVICE_PRICE, _LABEL_PRICE = cost.define_flags()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
