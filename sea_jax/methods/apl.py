"""APL: prompts of high predictive entropy, duels of large implicit margin (Muldrew et al., 2024)."""

import dataclasses

from sea_jax.config.fields import Section, field


@dataclasses.dataclass(frozen=True)
class Apl(Section):
    """APL: of pool_factor * train.batch_size prompts, the batch is those of highest predictive entropy."""

    section_name = "apl"
    pool_factor: int = field(8, "prompts of the pool, as a multiple of train.batch_size", at_least=1)
    entropy_samples: int = field(8, "responses per prompt of the pool that estimate the entropy", at_least=1)
    num_responses: int = field(
        8, "responses per chosen prompt, of which the two with the largest implicit margin meet", at_least=2
    )
