"""Fields of serving: a chat whose users choose between two answers now and then."""

import dataclasses

from sea_jax.config.fields import Section, field


@dataclasses.dataclass(frozen=True)
class Serve(Section):
    """`python -m sea_jax.serve`: the chat, and which of its requests get two answers."""

    section_name = "serve"
    host: str = field("127.0.0.1", "IPv4 address of the chat; others than this machine's need a token")
    port: int = field(8502, "port of the chat", at_least=1, at_most=65535)
    share: float = field(
        0.25, "share of the requests of the page that may get two answers", at_least=0, at_most=1
    )
    least_std: float = field(
        0.05,
        "standard deviation of the posterior's P(y ≻ y') from which two answers are shown, and below it one",
        at_least=0,
        at_most=0.5,
    )
    control_share: float = field(
        0.1,
        "share of the two answers of which one is the starting policy's: they measure the online win rate",
        at_least=0,
        at_most=1,
    )
    answer_s: float = field(300.0, "seconds for which a user can choose between two answers", above=0)
    pairs: int = field(
        16,
        "pairs that wait for a choice or to be learned from, at most; with so many nobody is asked, as a "
        "policy gets worse that learns from answers of much older versions",
        at_least=1,
    )
    at_once: int = field(16, "requests that are answered together, at most", at_least=1)
    waiting: int = field(256, "requests that wait, at most; further ones get status 503", at_least=1)
    chunk: int = field(8, "tokens between two parts of a streamed answer", at_least=1)
    requests_per_s: float = field(10.0, "requests per second of one user, at most", above=0)
