"""Fields of the preference oracle: who judges, and how it is reached."""

import dataclasses

from sea_jax import tasks
from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.config.policy import DTYPES
from sea_jax.credentials import is_plain_url, mask_url
from sea_jax.tasks.tokenizer import CHAT

REMOTE_KINDS = ("remote", "judge")
TIES = ("drop", "coin")
KINDS = ("task", "reward_model", "function", *REMOTE_KINDS, *PEOPLE_KINDS)


@dataclasses.dataclass(frozen=True)
class Oracle(Section):
    """The preference oracle P: a hidden reward, a model, a function, a service or people."""

    section_name = "oracle"
    kind: str = field(
        "task",
        "'task': the task's hidden reward; 'reward_model': a model in folder; 'function': Python code of "
        "yours; 'remote': a service at url (sea_jax/serve/oracle_service.py); 'judge': a language model at "
        "base_url; 'people': a page on which people answer; 'inbox': questions in a file, answered between "
        "two calls",
        one_of=KINDS,
    )
    folder: str = field("", "reward_model: folder or hub name in Hugging Face's layout")
    dtype: str = field("float32", "reward_model: dtype of activations", one_of=DTYPES)
    chat: str = field(
        "auto",
        "reward_model: use the tokenizer's chat template; auto: if it has one",
        one_of=CHAT,
    )
    function: str = field("", "function: my_rules.py:score or package.module:score (docs/guides/oracles.md)")
    batch_size: int = field(64, "reward_model: texts scored at once", at_least=1)
    labels: str = field("threshold", "how a probability becomes a label: 'threshold' at 1/2, or 'bernoulli'")
    flip_probability: float = field(
        0.0, "probability that a label is flipped (App. G.4)", at_least=0, at_most=1
    )
    url: str = field("http://127.0.0.1:8000", "remote: address of the service")
    base_url: str = field("", "judge: address of an endpoint with OpenAI's API")
    model: str = field("", "judge: name of the model at base_url")
    price_in: float = field(0.0, "judge: US dollars per million tokens read; 0: unknown", at_least=0)
    price_out: float = field(0.0, "judge: US dollars per million tokens written; 0: unknown", at_least=0)
    timeout_s: float = field(30.0, "remote, judge: seconds for one attempt", above=0)
    patience_s: float = field(300.0, "remote, judge: seconds for a request with all its attempts", above=0)
    attempts: int = field(3, "remote, judge: malformed replies before a request is given up", at_least=1)
    verdicts: int = field(
        0, "judge: verdicts that are sampled per comparison, for endpoints without log-probs; 0: log-probs",
        at_least=0,
    )  # fmt: skip
    both_orders: bool = field(False, "judge: ask in both orders; if they disagree, it is a tie")
    ties: str = field(
        "drop", "judge, people: a duel that ends in a tie: no label, or a label by a fair coin", one_of=TIES
    )
    max_calls: int = field(0, "judge: calls of all commands on a work directory; 0: no limit", at_least=0)
    max_usd: float = field(
        0.0, "judge: US dollars of all commands on a work directory, by the prices; 0: no limit", at_least=0
    )
    in_flight: int = field(8, "remote, judge: requests at once", at_least=1)
    request_size: int = field(16, "remote: comparisons per request", at_least=1)
    requests_per_minute: float = field(0.0, "judge: requests per minute at most; 0: no limit", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires the fields that the kind of oracle reads; asks nobody and reads no model."""
        if not checks.sound("oracle.kind", "task.name"):
            return
        if tasks.find(checks.config.task.name).reward_fn is None:
            checks.one_of("oracle.kind", KINDS[1:])  # the task has no hidden reward
        kind = checks.config.oracle.kind
        if kind == "reward_model" and checks.sound("oracle.folder"):
            valid = "a folder or a hub name with oracle.kind='reward_model'"
            checks.require(checks.config.oracle.folder != "", "oracle.folder", valid)
        if checks.sound("oracle.function"):
            unread = checks.config.oracle.function == "" or kind == "function"
            checks.require(unread, "oracle.function", f"'' with oracle.kind={kind!r}, which does not read it")
        _check_url(checks, "oracle.url", "http://127.0.0.1:8000", kind == "remote")
        _check_url(checks, "oracle.base_url", "https://api.openai.com/v1", kind == "judge")
        if kind == "judge" and checks.sound("oracle.model"):
            valid = "the name of a model at base_url"
            checks.require(checks.config.oracle.model != "", "oracle.model", valid)
        if checks.sound("oracle.max_usd", "oracle.price_in", "oracle.price_out"):
            priced = checks.config.oracle.price_in + checks.config.oracle.price_out > 0
            valid = "0 without oracle.price_in and oracle.price_out"
            checks.require(priced or not checks.config.oracle.max_usd, "oracle.max_usd", valid)


def _check_url(checks: Checks, name: str, example: str, read: bool) -> None:
    """Requires a URL; one that no oracle reads may be empty."""
    if checks.sound(name) and (read or checks.get(name)):
        url = checks.get(name)
        valid = f"a URL, as {example}, without user, password and query"
        checks.require(is_plain_url(url), name, valid, mask_url(url))
