"""Fields of labels by people: the page on which they answer, and how verdicts become labels."""

import dataclasses
from pathlib import Path

from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field

PEOPLE_KINDS = ("people", "inbox")  # of oracle.kind
COMBINE = ("majority", "mean")


@dataclasses.dataclass(frozen=True)
class People(Section):
    """People as the oracle: the page, and how their verdicts become labels."""

    section_name = "people"
    host: str = field("127.0.0.1", "IPv4 address of the page; others than this machine's need a token")
    port: int = field(8501, "port of the page", at_least=1, at_most=65535)
    guideline: str = field("", "file of plain text that the page shows to annotators; empty: none")
    lease_s: float = field(300.0, "seconds for which a duel that is shown belongs to one annotator", above=0)
    undo_s: float = field(
        3.0, "seconds for which a verdict that completes a duel can be taken back", at_least=0
    )
    skips: int = field(1, "skips after which a duel is given up, without a label", at_least=1)
    overlap: float = field(0.0, "share of the duels that several people answer", at_least=0, at_most=1)
    votes: int = field(3, "people who answer such a duel", at_least=2)
    combine: str = field(
        "majority", "how their verdicts become a probability: that of most, or the mean", one_of=COMBINE
    )
    requests_per_s: float = field(20.0, "requests per second of one annotator, at most", above=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires a guideline that can be read."""
        if checks.sound("people.guideline") and (name := checks.config.people.guideline):
            try:
                Path(name).read_text("utf-8")
            except (OSError, UnicodeDecodeError, ValueError) as error:
                checks.add(
                    f"config.people.guideline={name!r}: {error}; valid: a file of text", "people.guideline"
                )
