"""A real language model on two CPU cores: SmolLM2-135M-Instruct writes film reviews; an oracle prefers some.

`python -m launch.fetch_smollm2 data/smollm2` makes the folders of model and prompts. The oracle is a reward
model that learned from critics which sentence comes from a good review, or a lexicon of sentiments, which
needs no training (docs/guides/smollm2.md):
`python -m sea_jax.main rm --config=configs/smollm2.py --workdir=runs/smollm2-rm`
`python -m sea_jax.main --config=configs/smollm2.py --workdir=runs/smollm2`
`python -m sea_jax.main --config=configs/smollm2.py:sentiment --workdir=runs/smollm2-sentiment`
The seeds are two of the four of docs/benchmarks.md; the rates were chosen on seeds 0 and 1. On two cores all
runs take hours; `--config.methods` and `--config.num_seeds` choose some of them.
"""

from collections.abc import Sequence

from sea_jax.config.task import TextTask
from sea_jax.errors import InputError
from sea_jax.experiment.base_config import text_config
from sea_jax.types import Config

ORACLES = ("critics", "sentiment")


def get_config(oracle: str = "critics") -> Config:
    """Returns the comparison of passive DPO, SEA and RLOO on the posterior, two seeds each.

    Args:
        oracle: 'critics': the reward model in runs/smollm2-rm; 'sentiment': `sentiment` below.

    Raises:
        InputError: on another oracle.
    """
    if oracle not in ORACLES:
        raise InputError(f"oracle {oracle!r}: valid is one of {ORACLES}")
    config = text_config(
        TextTask(
            path="data/smollm2/reviews", reference_column="none", num_tuning=64, num_heldout=64,
            prompt_length=64, response_length=24,
        )
    )  # fmt: skip
    config.methods = ("passive", "sea", "posterior_rl")
    config.seed, config.num_seeds = 10, 2
    config.policy.folder = "data/smollm2/model"
    config.policy.trained_layers = 8
    _set_oracle(config, oracle)
    config.overrides.posterior_rl.train = dict(query_budget=128)
    config.eval.update(every_queries=16, gain_levels=(1.0, 2.0, 3.0))
    return config


def _set_oracle(config: Config, oracle: str) -> None:
    """Sets the oracle, and the command `rm` that trains the reward model."""
    config.oracle.update(kind="reward_model", folder="runs/smollm2-rm/reward_model", chat="no", batch_size=8)
    if oracle == "sentiment":
        config.oracle.update(kind="function", function="configs/smollm2.py:sentiment")
    config.rm.update(steps=160, batch_size=8, learning_rate=1e-4, length=64)


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Rewards positive words, as the lexicon VADER rates them: from -3 to 3."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [3 * analyzer.polarity_scores(response)["compound"] for response in responses]
