"""A language model as judge (App. G.2): any endpoint that speaks OpenAI's chat completions with log-probs."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sea_jax.errors import InputError, ServiceError
from sea_jax.oracles.patience import Pace, Retry, in_order, persist
from sea_jax.oracles.protocol import Answers
from sea_jax.oracles.remote import Bounds, Share

# Fig. 10, word for word; the quotation mark behind "model_identifier, which the figure lacks, is put in.
TEMPLATE = """\
I require a leaderboard for various large language models. I'll provide you with prompts given to these \
models and their corresponding outputs. Your task is to assess these responses, and select the model that \
produces the best output from a human perspective.
## Instruction
{instruction}
## Model Outputs
Here are the unordered outputs from the models. Each output is associated with a specific model, identified \
by a unique model identifier.
{{
"model_identifier": "0",
"output": {response0}
}}
{{
"model_identifier": "1",
"output": {response1}
}}
## Task
Evaluate the models on the basis of the quality and relevance of their results, and select the model that \
generated the best result. Reply with the identifier of the best model. Our evaluation will only take into \
account the first character of your answer, so make sure it contains only one of the identifiers and nothing \
else (no quotation marks, no spaces, no new lines, ...)."""
_TOP = 20  # alternatives of a token; the most that endpoints give
_UNLIKELY = -9999.0  # OpenAI's word for a log-prob that it does not tell
_PASSING = (408, 409, 429)


class Prices(NamedTuple):
    """US dollars for a million tokens; 0 where they are not known."""

    read: float = 0.0
    written: float = 0.0


class Judge:
    """P(y ≻ y' | x) as a language model sees it, from the log-probs of "0" and "1" as its first token.

    Which response stands first is drawn for every comparison, against the judge's liking for a place, from
    the texts and the seed: the same comparison is always asked in the same order. An answer that cannot be
    read is asked for again, `attempts` times in all; then there is none.

    Args:
        base_url: of the endpoint, as https://api.openai.com/v1.
        model: its name there.
        seed: of the order of responses.
        bounds: see `Bounds`; `request_size` is not read.
        per_minute: calls a minute at most; 0 for no limit.
        prices: for the metrics.
        share: as `RemoteOracle`'s.

    Raises:
        InputError: the openai package is missing.
        ServiceError: every method, if the endpoint does not answer within the bounds, or refuses.
    """

    def __init__(
        self, base_url: str, model: str, seed: int = 0, bounds: Bounds | None = None, per_minute: float = 0.0,
        prices: Prices | None = None, share: Share = lambda compute, like: compute(),
    ):  # fmt: skip
        try:
            import openai
        except ImportError:
            said = "config.oracle.kind='judge': openai is not installed; valid: pip install sea_jax[judge]"
            raise InputError(said) from None
        self._openai, self._model, self._seed = openai, model, seed
        self._bounds, self._prices, self._share = bounds or Bounds(), prices or Prices(), share
        # Retries are ours, so that every call is counted. A server of one's own may want no key.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
        self._pace, self._lock = Pace(per_minute), threading.Lock()
        self._what, self._per_minute = f"judge {model} at {base_url}", per_minute
        names: tuple[str, ...] = ("calls", "retries", "unreadable", "tokens_read", "tokens_written")
        self._counts: dict[str, int] = dict.fromkeys(names, 0)

    def answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Answers:
        """P(first ≻ second | x) where the judge's answer could be read."""
        rows = list(zip(prompts, first, second, strict=True))
        numbers = self._share(lambda: self._compare_all(rows), np.zeros(len(rows)))
        return Answers(numbers, ~np.isnan(numbers))

    def check(self) -> None:
        """Asks about one easy comparison, so that a wrong key or model is found before training begins."""
        found = self._share(lambda: self._compare_all([("Say hello.", "Hello!", "No.")]), np.zeros(1))
        if np.isnan(found).any():
            raise ServiceError(
                f'{self._what}: no log-probs of "0" or "1" in its answer; a judge must have them'
            )

    def metrics(self) -> dict[str, float]:
        """Calls, those that were repeats, answers that could not be read, tokens, and US dollars."""
        counts = dict(self._counts)
        cost = 1e-6 * (
            counts["tokens_read"] * self._prices.read + counts["tokens_written"] * self._prices.written
        )
        return {f"oracle/{k}": float(v) for k, v in counts.items()} | {"oracle/cost_usd": cost}

    def _compare_all(self, rows: list[tuple[str, str, str]]) -> np.ndarray:
        """[B] float64, NaN where there is no answer."""
        b = self._bounds
        rounds = math.ceil(len(rows) / b.in_flight)
        bound = b.attempts * rounds * (b.patience_s + b.timeout_s)
        if self._per_minute:
            bound += b.attempts * len(rows) * 60 / self._per_minute
        found = in_order(self._compare, rows, b.in_flight, bound, self._what)
        return np.array([math.nan if p is None else p for p in found], np.float64)

    def _compare(self, row: tuple[str, str, str], stop: threading.Event) -> float | None:
        prompt, *responses = row
        swapped = is_swapped(self._seed, *row)
        if swapped:
            responses.reverse()
        text = TEMPLATE.format(instruction=prompt, response0=responses[0], response1=responses[1])
        for again in range(self._bounds.attempts):
            margin = read_margin(self._call(text, bool(again), stop))
            if margin is not None:
                return 0.5 * (1.0 + math.tanh(0.5 * (-margin if swapped else margin)))
            self._count(unreadable=1)
        return None

    def _call(self, text: str, again: bool, stop: threading.Event) -> Any:
        """One answer of the model, whatever is in it; repeated while the endpoint does not answer."""
        tries = 0

        def attempt(left: float) -> Any:
            nonlocal tries
            tries += 1
            self._pace.wait(stop)
            if stop.is_set():  # nobody waits for what this call would cost
                raise ServiceError(f"{self._what}: given up, since another request failed")
            self._count(calls=1, retries=int(again or tries > 1))
            return self._ask(text, min(self._bounds.timeout_s, left))

        b = self._bounds
        reply = persist(attempt, self._what, b.patience_s, b.attempts, stop)
        usage = getattr(reply, "usage", None)
        self._count(
            tokens_read=getattr(usage, "prompt_tokens", 0) or 0,
            tokens_written=getattr(usage, "completion_tokens", 0) or 0,
        )
        return reply

    def _ask(self, text: str, timeout_s: float) -> Any:
        try:
            return self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": text}], max_tokens=1,
                temperature=0.0, logprobs=True, top_logprobs=_TOP, timeout=timeout_s,
            )  # fmt: skip
        except self._openai.APIConnectionError as error:  # a timeout is one
            raise Retry(f"{type(error).__name__}: {error.__cause__ or error}") from None
        except self._openai.APIStatusError as error:
            status, spent = error.status_code, getattr(error, "code", None) == "insufficient_quota"
            if (status in _PASSING or status >= 500) and not spent:
                raise Retry(f"status {status}: {error.message}", after_s=_after(error)) from None
            hint = "; the key is the environment's OPENAI_API_KEY" if status in (401, 403) else ""
            raise ServiceError(f"{self._what}: status {status}: {error.message}{hint}") from None
        except (ValueError, self._openai.APIError):  # a body that is no JSON, or none of the API's
            return None

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self._counts[name] += number


def is_swapped(seed: int, prompt: str, first: str, second: str) -> bool:
    """A fair coin, the same for the same texts and seed."""
    digest = hashlib.sha256("\0".join((str(seed), prompt, first, second)).encode())
    return bool(digest.digest()[0] & 1)


def read_margin(reply: Any) -> float | None:
    """log P("0") − log P("1") of an answer's first token, in nats; None where the answer cannot be read.

    Tokens that are "0" or "1" but for white space count too. One of the two that is not among the
    alternatives told is taken as impossible; if neither is, there is no answer.
    """
    try:
        told = reply.choices[0].logprobs.content[0].top_logprobs
        pairs = [(str(one.token).strip(), float(one.logprob)) for one in told]
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    sums = [
        np.logaddexp.reduce([p for token, p in pairs if token == name and p > _UNLIKELY], initial=-np.inf)
        for name in ("0", "1")
    ]
    return None if max(sums) == -np.inf else float(sums[0] - sums[1])


def _after(error: Any) -> float:
    """Seconds that the endpoint asks to wait."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (AttributeError, KeyError, ValueError):
        return 0.0
