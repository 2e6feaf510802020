"""Iterative DAP: rounds of labels, in each of which one version of the policy writes all responses.

References:
    Table 2; Xu et al. (2023), arXiv:2312.16682; Dong et al. (2024), arXiv:2405.07863. Theirs takes several
    passes over the labels of a round; here each label is learned from once, as in the other methods.
"""

import dataclasses

from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.methods.method import Method
from sea_jax.types import Config


@dataclasses.dataclass(frozen=True)
class Iterative(Section):
    """Rounds of iterative DAP."""

    section_name = "iterative"
    labels_per_round: int = field(128, "duels whose responses one version of the policy writes", at_least=1)

    @classmethod
    def check_on_task(cls, checks: Checks, num_prompts: int) -> None:
        """Requires rounds of whole steps, and no further delay of the policy."""
        names = "iterative.labels_per_round", "train.batch_size", "train.staleness", "train.ask_ahead"
        if checks.sound(*names):
            size, B = checks.config.iterative.labels_per_round, checks.config.train.batch_size
            checks.require(size % B == 0, names[0], f"a multiple of train.batch_size={B}")
            valid = "0 with methods='iterative', whose rounds are a delay of their own"
            for name in names[2:]:
                checks.require(checks.get(name) == 0, name, valid)


def steps_per_round(config: Config) -> int:
    """Returns the steps of a round."""
    return config.iterative.labels_per_round // config.train.batch_size


METHOD = Method(
    "iterative DAP", "as passive, but one version of the policy writes all responses of a round of labels",
    steps_per_round=steps_per_round, section=Iterative,
)  # fmt: skip
