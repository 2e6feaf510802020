"""Fields of the task: its prompts, and the hidden reward of the embedded one."""

import dataclasses

from sea_jax import tasks
from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.tasks.tokenizer import CHAT
from sea_jax.types import Config

EMBEDDED = "mini_tldr"


def is_text(config: Config) -> bool:
    """Returns whether the task is real text, and not embedded."""
    return config.task.name != EMBEDDED


@dataclasses.dataclass(frozen=True)
class Task(Section):
    """Prompts, their splits and the hidden reward."""

    section_name = "task"
    name: str = field(EMBEDDED, "the embedded task mini_tldr, or a kind of real text", one_of=tasks.NAMES)
    oracle_seed: int = field(0, "seed of the hidden reward of the first replicate", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires the fields of real text, and a policy, whose tokenizer the task takes."""
        if not checks.sound("task.name") or not is_text(checks.config):
            return
        valid = f"{EMBEDDED!r} in this config; the fields of real text are in configs/tldr.py"
        checks.require(checks.has("task.path"), "task.name", valid)
        if checks.sound("task.name", "policy.folder"):
            valid = "a folder or a hub name, whose tokenizer the task takes"
            checks.require(checks.config.policy.folder != "", "policy.folder", valid)


@dataclasses.dataclass(frozen=True)
class TextTask(Task):
    """Prompts of real text, from a data set of the hub or files; as `tasks.text.load` reads them."""

    name: str = field("local", "'tldr', 'ultrafeedback' or 'local'", one_of=tasks.NAMES)
    dataset: str = field("", "name of a data set of the hub; read where path is empty")
    subset: str = field("", "configuration of the data set, where it has several")
    path: str = field("", "file or folder of jsonl or parquet; empty: dataset")
    split_seed: int = field(0, "decides which prompts are chosen, and their order", at_least=0)
    prompt_column: str = field("", "column of prompts; empty: one of those known")
    reference_column: str = field("", "column of references; empty: one of those known, if any; 'none': none")
    chosen_column: str = field("", "column of preferred responses, for `rm`; empty: 'chosen'")
    rejected_column: str = field("", "column of the other responses, for `rm`; empty: 'rejected'")
    chat: str = field("auto", "use the tokenizer's chat template; auto: if it has one", one_of=CHAT)
    eos_token: str = field("", "token that ends a response; empty: the tokenizer's or the template's")
    num_train: int = field(0, "train prompts; 0: all that are left", at_least=0)
    num_tuning: int = field(500, "tuning prompts", at_least=0)
    num_heldout: int = field(1000, "held-out prompts", at_least=0)
    prompt_length: int = field(1024, "tokens of a prompt, L; longer prompts are dropped", at_least=1)
    response_length: int = field(512, "tokens of a response with its EOS, T", at_least=1)
