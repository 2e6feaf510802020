"""Fields of the experiment as a whole: its runs, the device mesh and the evaluation."""

import dataclasses

from sea_jax.config.checks import Checks
from sea_jax.config.fields import LARGEST_INT, Section, field
from sea_jax.tasks.protocol import SPLITS


@dataclasses.dataclass(frozen=True)
class General(Section):
    """The runs of an experiment: methods times seeds."""

    section_name = ""
    methods: tuple[str, ...] = field(("passive", "sea"), "rows of sea_jax.methods.METHODS, run one by one")
    seed: int = field(0, "seed of the first run; replicate i has seed + i and oracle_seed + i", at_least=0)
    num_seeds: int = field(2, "replicates of every method", at_least=1)
    cache_dir: str = field("", "folder of trained parts and compiled programs; empty: <workdir>/cache")
    progress: bool = field(True, "show progress bars")

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a method, each once, and seeds of 32 bits for all replicates."""
        if checks.sound("methods"):
            methods = checks.config.methods
            checks.require(len(methods) > 0, "methods", "at least one method")
            checks.require(len({*methods}) == len(methods), "methods", "each method once")
        if checks.sound("seed", "num_seeds"):
            most = LARGEST_INT - checks.config.num_seeds + 1
            checks.require(
                checks.config.seed <= most, "seed", f"in [0, {most}], so that the last has 32 bits"
            )


@dataclasses.dataclass(frozen=True)
class Mesh(Section):
    """Axes of the device mesh: data * fsdp devices share a batch, fsdp * tensor the parameters."""

    section_name = "mesh"
    data: int = field(1, "devices along the axis that only splits batches", at_least=1)
    fsdp: int = field(1, "devices along the axis that splits batches and parameters", at_least=1)
    tensor: int = field(1, "devices along the axis that only splits parameters", at_least=1)


@dataclasses.dataclass(frozen=True)
class Checkpoint(Section):
    """Checkpoints, from which the same command goes on with a run that was stopped."""

    section_name = "checkpoint"
    every_s: float = field(60.0, "seconds between two checkpoints; 0: after every step", at_least=0)
    keep: int = field(2, "newest checkpoints that are kept", at_least=1)
    grace_s: float = field(
        20.0,
        "seconds after SIGTERM or Ctrl-C at which updates between labels and waits for the oracle are broken"
        " off; the run then goes on from the checkpoint before",
        at_least=0,
    )
    best: bool = field(True, "keep that of the best evaluation too; its policy becomes policy_best/")


@dataclasses.dataclass(frozen=True)
class Eval(Section):
    """Evaluation on held-out prompts, while a method learns and at its end."""

    section_name = "eval"
    split: str = field("heldout", "split of the evaluation prompts", one_of=SPLITS)
    num_prompts: int = field(500, "prompts with one greedy response each", at_least=1)
    batch_size: int = field(250, "prompts sampled at once", at_least=1)
    every_queries: int = field(128, "oracle queries between two evaluations", at_least=1)
    num_pairs: int = field(
        500, "pairs of SFT samples for the ensemble's accuracy; rm: held-out pairs to sample", at_least=1
    )
    num_samples: int = field(4, "pairs of a step that are written to samples.jsonl", at_least=0)
    online: str = field(
        "auto", "log the online win rate, which scores a reference per duel; auto: if the oracle is free",
        one_of=("auto", "yes", "no"),
    )  # fmt: skip
    regret: bool = field(
        False, "log the regret of the duels, for which the oracle's rewards of all proposals are read"
    )
    kl_samples: int = field(
        0, "samples a prompt, at temperature 1, that measure KL to the starting policy; 0: off", at_least=0
    )
    best_of: int = field(1, "samples of which the ensemble chooses one (best-of-N); 1: off", at_least=1)
    levels: tuple[float, ...] = field(
        (0.8, 0.9, 0.95),
        "win rates against the SFT policy; reports count the queries to reach each",
        at_least=0,
        at_most=1,
    )
    reference_levels: tuple[float, ...] = field(
        (0.8, 0.9, 0.95),
        "win rates against the references; reports count the queries to reach each",
        at_least=0,
        at_most=1,
    )
    reward_levels: tuple[float, ...] = field(
        (5.5, 6.0, 6.5, 7.0), "mean oracle rewards; reports count the queries to reach each"
    )
    gain_levels: tuple[float, ...] = field(
        (), "gains in mean oracle reward since the start; reports count the queries to reach each"
    )
