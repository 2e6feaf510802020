"""A chat whose policy learns from its users' choices between two answers (paper, App. I, Fig. 11).

python -m sea_jax.serve --config=configs/chat.py --workdir=runs/chat                # the miniature
python -m sea_jax.serve --config=configs/chat.py:smollm2 --workdir=runs/chat        # SmolLM2-135M
"""

from configs import quickstart, smollm2
from sea_jax.types import Config

POLICIES = ("miniature", "smollm2")


def get_config(policy: str = "miniature") -> Config:
    """Returns the config of a chat.

    Args:
        policy: one of POLICIES; 'smollm2' needs data/smollm2 (docs/guides/real_models.md).
    """
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}: valid is one of {POLICIES}")
    config = quickstart.get_config() if policy == "miniature" else smollm2.get_config()
    if policy == "smollm2":
        config.task.update(prompt_length=512, response_length=128)  # tokens of a conversation, of an answer
    config.methods, config.num_seeds = ("ee_ts",), 1
    config.oracle.kind = "people"
    config.train.query_budget = 100_000
    config.eval.every_queries = 32
    # Every version can be taken up again, as far as they are kept.
    config.checkpoint.update(every_s=0.0, keep=20)
    return config
