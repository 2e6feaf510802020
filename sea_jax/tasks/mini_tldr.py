"""mini_tldr: TL;DR summarisation in miniature, embedded, with a family of hidden rewards.

`load()` builds the prompts, references, demonstrations and tokenizer from a fixed data seed.
A reward is r*(x, y) = basis(x, y) · weights: `reward_basis` measures a summary, `draw_reward(seed)`
draws the weights, mostly a hidden preference among synonyms. Each seed is another oracle of the family.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import random
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sea_jax.tasks import mini_tldr_grammar as grammar
from sea_jax.tasks import protocol

PROMPT_LENGTH, RESPONSE_LENGTH = 64, 26  # tokens; the second counts the EOS
PROMPT_TOKENS, REFERENCE_TOKENS = (40, 64), (8, 24)  # least and most, without the EOS
NUM_PROMPTS = {"train": 20_000, "tuning": 500, "heldout": 1_000}
VOCAB_SIZE = 1024
PAD, EOS = "<|pad|>", "<|endoftext|>"  # ids 0 and 1
_DATA_SEED = 20_240
_TOKENIZER_POSTS = 4_000
_CHUNK = 4_096

# --- the data ---------------------------------------------------------------------------------


def load(cache_dir: str | os.PathLike | None = None) -> protocol.Task:
    """Builds the task, the same in every process and on every machine.

    Args:
      cache_dir: a folder for `tokenizer.json` and `mini_tldr.json`, which are read if this version of the
        code wrote them, else built (some seconds) and written.

    Returns:
      The task: 20,000 train, 500 tuning and 1,000 held-out prompts, all distinct.
    """
    folder = pathlib.Path(cache_dir) if cache_dir is not None else None
    cached = _read_cache(folder) if folder is not None else None
    if cached is None:
        tokenizer = _train_tokenizer()
        data = _build_data(tokenizer)
        if folder is not None:
            _write_cache(folder, tokenizer, data)
    else:
        tokenizer, data = cached
    # Text that spells a special token must not become one.
    tokenizer.encode_special_tokens = True
    return protocol.Task(
        name="mini_tldr",
        tokenizer=tokenizer,
        pad_id=tokenizer.token_to_id(PAD),  # pyright: ignore[reportArgumentType]
        eos_id=tokenizer.token_to_id(EOS),  # pyright: ignore[reportArgumentType]
        prompt_length=PROMPT_LENGTH,
        response_length=RESPONSE_LENGTH,
        prompts={split: tuple(data["prompts"][split]) for split in protocol.SPLITS},
        references={split: tuple(data["references"][split]) for split in protocol.SPLITS},
        demonstrations=tuple(data["demonstrations"]),
    )


def _train_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(), trainer)
    return tokenizer


def _tokenizer_corpus() -> Iterator[str]:
    """Yields texts of the task's distribution, from a random stream of their own, then each word once.

    The bare words fill the vocabulary, and shorten texts that start without a space. They are rare, so their
    merges come after those of words within a sentence.
    """
    rng = random.Random(_DATA_SEED + 1)
    words: set[str] = set()
    for _ in range(_TOKENIZER_POSTS):
        post = grammar.make_post(rng)
        demonstration = grammar.make_demonstration(rng, post)[0]
        for text in (post.text, grammar.make_reference(rng, post.facts), demonstration):
            words.update(re.findall("[a-z]+", text))
            yield text
    yield from sorted(words)


def _build_data(tokenizer: tokenizers.Tokenizer) -> dict:
    """Fills every split with posts of the right length, each text once."""
    rng = random.Random(_DATA_SEED)
    total = sum(NUM_PROMPTS.values())
    posts: dict[str, grammar.Post] = {}
    while len(posts) < total:
        drawn = [grammar.make_post(rng) for _ in range(_CHUNK)]
        encodings = tokenizer.encode_batch([post.text for post in drawn])
        for post, encoding in zip(drawn, encodings, strict=True):
            if PROMPT_TOKENS[0] <= len(encoding.ids) <= PROMPT_TOKENS[1]:
                posts.setdefault(post.text, post)
    chosen = list(posts.values())[:total]
    train = chosen[: NUM_PROMPTS["train"]]
    reference_draws = [functools.partial(grammar.make_reference, rng, p.facts) for p in chosen]
    noisy_draws = [functools.partial(_demonstrate, rng, post) for post in train]
    references = _fit(tokenizer, reference_draws, *REFERENCE_TOKENS)
    demonstrations = _fit(tokenizer, noisy_draws, 1, RESPONSE_LENGTH - 1)
    data: dict = {"prompts": {}, "references": {}, "demonstrations": demonstrations}
    start = 0
    for split, size in NUM_PROMPTS.items():
        data["prompts"][split] = [post.text for post in chosen[start : start + size]]
        data["references"][split] = references[start : start + size]
        start += size
    return data


def _demonstrate(rng: random.Random, post: grammar.Post) -> str:
    return grammar.make_demonstration(rng, post)[0]


def _fit(tokenizer, draws: list[Callable[[], str]], least: int, most: int) -> list[str]:
    """Draws each text until its number of tokens lies in [least, most]."""
    texts = [draw() for draw in draws]
    pending = list(range(len(texts)))
    while pending:
        lengths = [len(e.ids) for e in tokenizer.encode_batch([texts[i] for i in pending])]
        pending = [i for i, n in zip(pending, lengths, strict=True) if not least <= n <= most]
        for index in pending:
            texts[index] = draws[index]()
    return texts


# --- the cache --------------------------------------------------------------------------------


@functools.cache
def _fingerprint() -> str:
    """Hashes the code that makes the data, so that no stale cache is read."""
    sources = [pathlib.Path(file).read_bytes() for file in (__file__, grammar.__file__)]
    version = tokenizers.__version__.encode()
    return hashlib.sha256(b"\0".join([*sources, version])).hexdigest()


def _read_cache(folder: pathlib.Path):
    path = folder / "mini_tldr.json"
    if not path.exists() or not (folder / "tokenizer.json").exists():
        return None
    data = json.loads(path.read_text())
    tokenizer_text = (folder / "tokenizer.json").read_text()
    if data["fingerprint"] != _fingerprint() or data["tokenizer"] != _digest(tokenizer_text):
        return None
    return tokenizers.Tokenizer.from_str(tokenizer_text), data


def _write_cache(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, data: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer.to_str(pretty=True)
    stamp = {"fingerprint": _fingerprint(), "tokenizer": _digest(text)}
    _replace(folder / "tokenizer.json", text)
    _replace(folder / "mini_tldr.json", json.dumps(stamp | data))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically, since processes that start together share one cache."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)


# --- the reward family ------------------------------------------------------------------------

_CHOICE_GROUPS = tuple(
    (slot, concept[0], concept) for slot, concepts in grammar.CONCEPTS.items() for concept in concepts
) + tuple((group, group, variants) for group, variants in grammar.GLOBALS.items())
_CHOICES = tuple(
    (grammar.Mention(slot, concept, i), f"choice/{slot}/{phrase}")
    for slot, concept, phrases in _CHOICE_GROUPS
    for i, phrase in enumerate(phrases)
)
_CHOICE_COLUMN = {mention: column for column, (mention, _) in enumerate(_CHOICES)}
_COVER = len(_CHOICES)
_WRONG = _COVER + len(grammar.SLOTS)
_LENGTH, _JUNK = _WRONG + 2, _WRONG + 5
_SLOT = {slot: index for index, slot in enumerate(grammar.SLOTS)}
_WRONG_CAP, _UNKNOWN_CAP, _REPEAT_CAP = 3, 5, 3
_MARKS = frozenset(".,?")
# Runs of white space count as unknown words, so that a response gets nothing for free.
_WORD = re.compile(r"[.,?]|[^\s.,?]+|\s{2,}|[^\S ]")

BASIS_NAMES: tuple[str, ...] = (
    *(name for _, name in _CHOICES),
    *(f"cover/{slot}" for slot in grammar.SLOTS),
    *("wrong/entity", "wrong/concept"),
    *("length/words", "length/over_16", "length/over_20"),
    *("junk/unknown", "junk/repeated"),
)
NUM_BASIS = len(BASIS_NAMES)
_facts = functools.lru_cache(maxsize=1 << 16)(grammar.read_post)


def reward_basis(prompt: str, response: str) -> np.ndarray:
    """Measures one summary of one post; see `BASIS_NAMES` for the entries.

    - choice/<slot>/<phrase>: 1 if that synonym is used and names the post's own concept; for the
      openers and the ask phrases, whenever used.
    - cover/<slot>: 1 if the post's fact is named, in whatever surface form.
    - wrong/entity, wrong/concept: how many persons and objects, and how many other concepts, are
      named that are not the post's; each at most 3.
    - length/words, length/over_16, length/over_20: words, and words beyond 16 and beyond 20.
    - junk/unknown: words no clean summary could hold, stray punctuation and white space, at most 5;
      junk/repeated: phrases said again and words doubled, at most 3.

    Args:
      prompt: a post of this task.
      response: any text, the empty one included.

    Returns:
      [F] float32, F = `NUM_BASIS`.

    Raises:
      ValueError: the prompt is no post of this task.
    """
    row = np.zeros(NUM_BASIS, np.float32)
    _measure(row, prompt, response)
    return row


def reward_basis_batch(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Measures N pairs by `reward_basis`: [N, F] float32."""
    if len(prompts) != len(responses):
        raise ValueError(f"responses: {len(responses)} given, must be one per prompt, {len(prompts)}")
    rows = np.zeros((len(prompts), NUM_BASIS), np.float32)
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        _measure(row, prompt, response)
    return rows


def _measure(row: np.ndarray, prompt: str, response: str) -> None:
    facts = _facts(prompt)
    pieces = _WORD.findall(response)
    mentions, rest = grammar.find_mentions(pieces)
    said = set(mentions)
    wrong: tuple[set, set] = (set(), set())
    for mention in said:
        slot = _SLOT.get(mention.slot)
        if slot is not None and facts[slot] != mention.concept:
            wrong[mention.slot not in ("who", "object")].add(mention[:2])
            continue
        if slot is not None:
            row[_COVER + slot] = 1
        column = _CHOICE_COLUMN.get(mention)
        if column is not None:
            row[column] = 1
    row[_WRONG] = min(len(wrong[0]), _WRONG_CAP)
    row[_WRONG + 1] = min(len(wrong[1]), _WRONG_CAP)
    words = sum(piece not in _MARKS for piece in pieces)
    row[_LENGTH : _LENGTH + 3] = words, max(0, words - 16), max(0, words - 20)
    known = grammar.summary_words()
    unknown = sum(piece not in known and piece not in _MARKS for piece in rest)
    repeated = len(mentions) - len(said)
    before = ","  # a mark that opens the response or follows a mark is stray
    for piece in pieces:
        if piece in _MARKS:
            unknown += before in _MARKS
        elif piece == before and piece in rest:
            repeated += 1
        before = piece
    row[_JUNK : _JUNK + 2] = min(unknown, _UNKNOWN_CAP), min(repeated, _REPEAT_CAP)


_REWARD_STREAM = 7_261_903  # separates these draws from other uses of the same seed


def draw_reward(seed: int) -> np.ndarray:
    """Draws the weights of one hidden reward, with independent entries.

    - choice: for each of the 42 groups of three synonyms, a uniform permutation of (-0.6, 0, +0.6);
    - cover: Uniform(0.3, 1.0) per fact;
    - wrong/entity and wrong/concept: Uniform(-2, -1) each;
    - length: Uniform(-0.06, -0.02) per word, Uniform(-0.15, -0.05) more beyond 16 words and
      Uniform(-0.3, -0.1) more beyond 20;
    - junk: -0.5 each.

    Args:
      seed: non-negative; names one member of the family.

    Returns:
      [F] float32, in nats of preference log-odds (Eq. 3) per unit of basis.
    """
    rng = np.random.default_rng([_REWARD_STREAM, seed])
    weights = np.zeros(NUM_BASIS, np.float32)
    utilities = np.tile([-0.6, 0.0, 0.6], (len(_CHOICE_GROUPS), 1))
    weights[:_COVER] = rng.permuted(utilities, axis=1).ravel()
    weights[_COVER:_WRONG] = rng.uniform(0.3, 1.0, len(grammar.SLOTS))
    weights[_WRONG:_LENGTH] = rng.uniform(-2.0, -1.0, 2)
    weights[_LENGTH:_JUNK] = rng.uniform([-0.06, -0.15, -0.3], [-0.02, -0.05, -0.1])
    weights[_JUNK:] = -0.5
    return weights


def reward_fn(seed: int) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """Returns r* of one seed: (prompts, responses), B texts each, -> [B] float32."""
    weights = draw_reward(seed)
    # Not a matrix product, whose last bits depend on the batch: a reward must not depend on it, or a service
    # that batches would give other labels.
    return lambda prompts, responses: (reward_basis_batch(prompts, responses) * weights).sum(-1)
