"""A language model as judge (App. G.2), at any endpoint with OpenAI's chat completions and log-probs."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sea_jax.credentials import JUDGE_KEY, redact
from sea_jax.errors import InputError, ServiceError
from sea_jax.oracles.access import read_key, require_plain_url
from sea_jax.oracles.judge_prompt import judge_prompt
from sea_jax.oracles.patience import RateLimiter, RetryableError, map_in_order, retry
from sea_jax.oracles.protocol import Answers, ArrivedFn, BroadcastFn, compute_locally
from sea_jax.oracles.remote import RequestLimits
from sea_jax.oracles.spending import Spending

_TOP_LOGPROBS = 20  # alternatives per token, the most that endpoints return
_LONGEST_MESSAGE = 300  # characters of a service's message in an error
_SCORED: dict[str, Any] = dict(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=_TOP_LOGPROBS)
_SAMPLED: dict[str, Any] = dict(max_tokens=4, temperature=1.0)  # a space may come first
_UNKNOWN_LOGPROB = -9999.0  # OpenAI's value for a log-prob that it does not return
RETRYABLE_STATUS = (408, 409, 429)  # besides 500 and above


class Prices(NamedTuple):
    """Prices in US dollars per million tokens; 0 if unknown."""

    prompt: float = 0.0
    completion: float = 0.0


class Manner(NamedTuple):
    """Manner in which a judge is asked.

    Attributes:
        verdicts: sampled per comparison and order; 0: one reply with log-probs.
        both_orders: asks in both orders of the responses.
        ties: 'drop': P = ½ of sampled verdicts or of both orders is no answer; 'coin': it is one.
    """

    verdicts: int = 0
    both_orders: bool = False
    ties: str = "drop"


class Judge:
    """P(y ≻ y' | x) of a language model, from the log-probs of "0" and "1" as its first token, or samples.

    The order of the two responses is drawn per comparison, to cancel position bias: from the texts and the
    seed, so that the same comparison is always asked in the same order. A reply that cannot be read is
    requested again, up to `limits.attempts` times in all; after that the comparison is unanswered. Where both
    orders are asked, P is their mean, and ½ if they disagree about which response is better: a tie.

    Args:
        base_url: of the endpoint, such as https://api.openai.com/v1.
        model: its name at the endpoint.
        seed: of the order of responses.
        limits: see `RequestLimits`; `request_size` is not used.
        per_minute: calls per minute; 0 for no limit.
        prices: for the metrics.
        broadcast: see `BroadcastFn`.
        manner: see `Manner`.
        spending: counts and limits the calls; None: no limit.

    Raises:
        SpendLimitError: by every method, if the limit is reached.
        InputError: the openai package is missing, the URL has a password, or the key is none.
        ServiceError: by every method, if the endpoint does not answer within the limits, or refuses.
    """

    reports_arrivals = True

    def __init__(
        self,
        base_url: str,
        model: str,
        seed: int = 0,
        limits: RequestLimits | None = None,
        per_minute: float = 0.0,
        prices: Prices | None = None,
        broadcast: BroadcastFn = compute_locally,
        manner: Manner | None = None,
        spending: Spending | None = None,
    ):
        try:
            import openai
        except ImportError:
            valid = "valid: pip install sea_jax[judge]"
            raise InputError(f"config.oracle.kind='judge': openai is not installed; {valid}") from None
        require_plain_url("base_url", base_url)
        self._openai, self._model, self._seed = openai, model, seed
        self._limits, self._prices, self._broadcast = limits or RequestLimits(), prices or Prices(), broadcast
        self._manner, self._spending = manner or Manner(), spending or Spending()
        # Retries are made here, so that every call is counted. A local server may need no key.
        key = read_key(JUDGE_KEY) or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
        self._rate_limiter, self._lock = RateLimiter(per_minute), threading.Lock()
        self._name, self._per_minute = f"judge {model} at {base_url}", per_minute
        names: tuple[str, ...] = ("calls", "retries", "unreadable", "tokens_read", "tokens_written")
        self._counts: dict[str, int] = dict.fromkeys(names, 0)

    def answers(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        arrived: ArrivedFn | None = None,
    ) -> Answers:
        """Returns P(first ≻ second | x) where the judge's reply could be read."""
        rows = list(zip(prompts, first, second, strict=True))
        probability = self._broadcast(lambda: self._compare_all(rows, arrived), np.zeros(len(rows)))
        return Answers(probability, ~np.isnan(probability))

    def check(self) -> None:
        """Judges one easy comparison, so that a wrong key or model is found before training begins."""
        easy = [("Say hello.", "Hello!", "No.")]
        found = self._broadcast(lambda: self._compare_all(easy, ties="coin"), np.zeros(1))
        if np.isnan(found).any():
            lacks = 'no log-probs of "0" or "1" in its answer; valid: such, or config.oracle.verdicts above 0'
            if self._manner.verdicts:
                lacks = 'its answers begin with neither "0" nor "1", as a judge\'s must'
            raise ServiceError(f"{self._name}: {lacks}")

    def metrics(self) -> dict[str, float]:
        """Returns the numbers of calls, retries, unreadable replies and tokens, and US dollars spent."""
        counts = dict(self._counts)
        cost = self._cost(counts["tokens_read"], counts["tokens_written"])
        return {f"oracle/{k}": float(v) for k, v in counts.items()} | {"oracle/cost_usd": cost}

    def _compare_all(
        self, rows: list[tuple[str, str, str]], arrived: ArrivedFn | None = None, ties: str = ""
    ) -> np.ndarray:
        """Judges all rows, several at once; returns [B] float64, NaN where unanswered.

        `ties` as in `Manner`; empty: those of the judge.
        """
        limits = self._limits
        rounds = math.ceil(len(rows) / limits.in_flight)
        calls = limits.attempts * max(self._manner.verdicts, 1) * (1 + self._manner.both_orders)
        timeout_s = calls * rounds * (limits.patience_s + limits.timeout_s)
        if self._per_minute:
            timeout_s += calls * len(rows) * 60 / self._per_minute

        def report(index: int, probability: float) -> None:
            if arrived is not None:
                arrived([index], np.array([probability]))

        compare = functools.partial(self._compare, ties or self._manner.ties)
        found = map_in_order(compare, rows, limits.in_flight, timeout_s, self._name, report, limits.timeout_s)
        return np.array(found, np.float64)

    def _compare(self, ties: str, row: tuple[str, str, str], stop: threading.Event) -> float:
        """Returns P of one row; NaN if no reply could be read, or at a tie that is dropped."""
        swapped = is_swapped(self._seed, *row)
        orders = (swapped, not swapped) if self._manner.both_orders else (swapped,)
        found = [self._in_order(row, order, stop) for order in orders]
        p = sum(found) / len(found)
        if len(found) == 2 and (found[0] - 0.5) * (found[1] - 0.5) <= 0:
            p = 0.5 if not math.isnan(p) else p
        tied = p == 0.5 and (self._manner.verdicts > 0 or self._manner.both_orders)
        return math.nan if tied and ties == "drop" else p

    def _in_order(self, row: tuple[str, str, str], swapped: bool, stop: threading.Event) -> float:
        """Returns P of one row, from one order of the responses; NaN if no reply could be read."""
        prompt, first, second = row
        text = judge_prompt(prompt, *((second, first) if swapped else (first, second)))
        if not self._manner.verdicts:
            margin = self._readable(text, 0, read_margin, stop)
            if margin is None:
                return math.nan
            return 0.5 * (1.0 + math.tanh(0.5 * (-margin if swapped else margin)))
        numbers = range(self._manner.verdicts)
        verdicts = [self._readable(text, number, read_verdict, stop) for number in numbers]
        read = [verdict for verdict in verdicts if verdict is not None]
        if not read:
            return math.nan
        return sum(read) / len(read) if not swapped else 1.0 - sum(read) / len(read)

    def _readable(
        self, text: str, number: int, read: Callable[[Any], float | None], stop: threading.Event
    ) -> float | None:
        """Calls the model until its reply can be read; None if none can.

        Args:
            text: of the message.
            number: of the verdict, from 0; each is another reply to the same text.
            read: returns None for a reply that it cannot read.
            stop: as in `_call`.
        """
        for repeat in range(self._limits.attempts):
            found = read(self._call(text, number * self._limits.attempts + repeat, stop))
            if found is not None:
                return found
            self._count(unreadable=1)
        return None

    def _cost(self, read: int, written: int) -> float:
        return 1e-6 * (read * self._prices.prompt + written * self._prices.completion)

    def _call(self, text: str, repeat: int, stop: threading.Event) -> Any:
        """Calls the model until the endpoint replies; returns the reply, readable or not.

        Args:
            text: of the message.
            repeat: number of earlier replies to it, readable or not.
            stop: is set when the reply is not needed any more.
        """
        key, tries = idempotency_key(self._model, text, repeat), 0

        def attempt(left_s: float) -> Any:
            nonlocal tries
            tries += 1
            self._rate_limiter.wait(stop)
            if stop.is_set():  # nobody waits for the reply, and it would cost
                raise ServiceError(f"{self._name}: given up, since another request failed")
            self._spending.call()
            self._count(calls=1, retries=int(bool(repeat % self._limits.attempts) or tries > 1))
            return self._post(text, key, min(self._limits.timeout_s, left_s))

        reply = retry(attempt, self._name, self._limits.patience_s, self._limits.attempts, stop)
        usage = getattr(reply, "usage", None)
        used = (getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)
        self._count(tokens_read=used[0], tokens_written=used[1])
        self._spending.pay(self._cost(*used))
        return reply

    def _post(self, text: str, key: str, timeout_s: float) -> Any:
        """Sends one call; returns the reply, or None for a body that is not of the API."""
        try:
            return self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": text}], timeout=timeout_s,
                extra_headers={"Idempotency-Key": key}, **_SAMPLED if self._manner.verdicts else _SCORED,
            )  # fmt: skip
        except self._openai.APIConnectionError as error:  # includes timeouts
            raise RetryableError(f"{type(error).__name__}: {error.__cause__ or error}") from None
        except self._openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (ValueError, self._openai.APIError):  # not JSON, or not the API's
            return None

    def _status_error(self, error: Any) -> Exception:
        """Converts an HTTP status to RetryableError, or to ServiceError where a retry would not help."""
        status, no_quota = error.status_code, getattr(error, "code", None) == "insufficient_quota"
        reason = f"status {status}: {service_message(error)}"
        if (status in RETRYABLE_STATUS or status >= 500) and not no_quota:
            return RetryableError(reason, retry_after_s=retry_after(error))
        return ServiceError(f"{self._name}: {reason}{_hint(status, reason)}")

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, number in counts.items():
                self._counts[name] += number


def is_swapped(seed: int, prompt: str, first: str, second: str) -> bool:
    """Flips a fair coin that is the same for the same texts and seed."""
    joined = "\0".join((str(seed), prompt, first, second))
    digest = hashlib.sha256(joined.encode(errors="surrogatepass"))
    return bool(digest.digest()[0] & 1)


def idempotency_key(model: str, text: str, repeat: int) -> str:
    """Returns the header Idempotency-Key of a request: 64 hexadecimal digits, equal for equal arguments.

    A retry, or a process that was started again, sends the key of the request whose answer was lost. An
    endpoint that knows the header then repeats its answer and charges nothing.

    Args:
        model: its name at the endpoint.
        text: of the message.
        repeat: number of earlier replies. Each call asks for another reply, so it changes the key.
    """
    joined = "\0".join((model, text, str(repeat)))
    return hashlib.sha256(joined.encode(errors="surrogatepass")).hexdigest()


def read_margin(reply: Any) -> float | None:
    """Reads log P("0") − log P("1") of a reply's first token.

    Tokens that equal "0" or "1" after stripping white space count too. If only one of the two is among the
    alternatives, the other has probability 0.

    Args:
        reply: a chat completion, or anything else.

    Returns:
        The margin in nats, perhaps infinite; None if the reply cannot be read or has neither token.
    """
    try:
        alternatives = reply.choices[0].logprobs.content[0].top_logprobs
        pairs = [(str(one.token).strip(), float(one.logprob)) for one in alternatives]
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    sums = [
        np.logaddexp.reduce(
            [p for token, p in pairs if token == name and p > _UNKNOWN_LOGPROB], initial=-np.inf
        )
        for name in ("0", "1")
    ]
    return None if max(sums) == -np.inf else float(sums[0] - sums[1])


def read_verdict(reply: Any) -> float | None:
    """Reads which output a reply says is better: 1 for "0", 0 for "1", None for anything else."""
    try:
        text = str(reply.choices[0].message.content or "").strip()
    except (AttributeError, IndexError, TypeError):
        return None
    return {"0": 1.0, "1": 0.0}.get(text[:1])


def retry_after(error: Any) -> float:
    """Returns the seconds of a reply's header Retry-After; 0 if it has none."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (AttributeError, KeyError, ValueError):
        return 0.0


def service_message(error: Any) -> str:
    """Returns what a service said with an error status: one line without keys, perhaps cut.

    Args:
        error: openai's, whose body is the reply's JSON, or its member 'error', or else text.
    """
    body = error.body.get("message", error.body) if isinstance(error.body, dict) else error.body
    text = redact(" ".join(str(body or error.response.text or "no message").split()))
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _hint(status: int, reason: str) -> str:
    """Says what a user can do about a refusal; a service without log-probs may refuse by any status."""
    if status == 401:
        unset = "" if read_key(JUDGE_KEY) else ", which is not set"
        return f"; the key is the environment's {JUDGE_KEY}{unset}"
    if re.search(r"log[ _-]?prob", reason, re.IGNORECASE):
        return "; valid is a model whose endpoint returns log-probs"
    return "; valid is a model that the key may use" if status == 403 else ""
