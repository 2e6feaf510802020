"""Fields of the watches, which warn of a run that goes wrong (`experiment/watches.py`)."""

import dataclasses

from sea_jax.config.fields import Section, field

WATCHES = ("agreement", "distinct", "kl", "length", "accuracy", "drift")  # each has a bound of its name below


@dataclasses.dataclass(frozen=True)
class Watch(Section):
    """Watches: each warns once where a mean of metrics passes its bound, and may end the run."""

    section_name = "watch"
    stop: tuple[str, ...] = field((), "watches whose warning ends the run, saved", one_of=WATCHES)
    after: int = field(
        32,
        "labels before which agreement, accuracy and drift are silent, as the posterior is new",
        at_least=0,
    )
    labels: int = field(64, "last labels over which agreement and drift are means", at_least=1)
    accuracy_labels: int = field(128, "last labels over which accuracy is a mean", at_least=1)
    steps: int = field(8, "last steps over which distinct and kl are means", at_least=1)
    agreement: float = field(
        0.01, "standard deviation of the heads' probabilities of a label, below which heads agree; 0: off",
        at_least=0,
    )  # fmt: skip
    distinct: float = field(
        1.5, "distinct responses of M to a prompt, below which they are equal; 0: off", at_least=0
    )
    kl: float = field(
        0.8, "nats of KL(π_θ ‖ π_ref) per token of a response, as a bound from above; inf: off",
        above=0, infinite=True,
    )  # fmt: skip
    length: float = field(
        2.0, "times that greedy responses may be longer or shorter than at the start; inf: off",
        above=1, infinite=True,
    )  # fmt: skip
    accuracy: float = field(
        0.48, "share of new labels that the posterior predicts, as a bound from below; 0: off",
        at_least=0, at_most=1,
    )  # fmt: skip
    drift: float = field(
        0.8, "log-loss of new labels under the posterior in nats, of which guessing has 0.69; inf: off",
        above=0, infinite=True,
    )  # fmt: skip
