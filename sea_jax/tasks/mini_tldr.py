"""TL;DR summarisation in miniature, embedded, with families of hidden rewards.

A `MiniTldr` builds the prompts, references, demonstrations and tokenizer of one task from a fixed data seed.
The rows are `V1`, the task mini_tldr, and `V2`, the harder mini_tldr_v2. The functions of this module without
a row are V1's.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import random
import re
from collections.abc import Callable, Iterator

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sea_jax.tasks import mini_tldr_grammar as grammar
from sea_jax.tasks import mini_tldr_words, protocol
from sea_jax.tasks.mini_tldr_rewards import Basis, LinearRewards, RegisterRewards

RESPONSE_LENGTH = 26  # tokens, the EOS counted
REFERENCE_TOKENS = (8, 24)  # least and most, without the EOS
NUM_PROMPTS = {"train": 20_000, "tuning": 500, "heldout": 1_000}
PAD, EOS = "<|pad|>", "<|endoftext|>"  # ids 0 and 1
_TOKENIZER_POSTS = 4_000
_CHUNK = 4_096


@dataclasses.dataclass(frozen=True, eq=False)
class MiniTldr:
    """The data of one task.

    Attributes:
      name: the task's; names its file in a cache folder.
      grammar: of its posts.
      prompt_tokens: least and most.
      vocab_size: of its tokenizer; every word of a clean summary is one token.
      data_seed: of the data; the next number is the seed of the tokenizer's texts.
    """

    name: str
    grammar: grammar.Grammar
    prompt_tokens: tuple[int, int]
    vocab_size: int
    data_seed: int

    def load(self, cache_dir: str | os.PathLike | None = None) -> protocol.Task:
        """Builds the task, the same in every process and on every machine.

        Args:
          cache_dir: a folder for `<name>.json`, which is read if this version of the code wrote it, else
            built (some seconds) and written. Several tasks can share a folder.

        Returns:
          The task: 20,000 train, 500 tuning and 1,000 held-out prompts, all distinct.
        """
        path = pathlib.Path(cache_dir, f"{self.name}.json") if cache_dir is not None else None
        data = _read_cache(path) if path is not None else None
        if data is None:
            data = self._build()
            if path is not None:
                _write_cache(path, data)
        tokenizer = tokenizers.Tokenizer.from_str(data["tokenizer"])
        # Text that spells a special token must not become one.
        tokenizer.encode_special_tokens = True
        return protocol.Task(
            name=self.name,
            tokenizer=tokenizer,
            pad_id=tokenizer.token_to_id(PAD),  # pyright: ignore[reportArgumentType]
            eos_id=tokenizer.token_to_id(EOS),  # pyright: ignore[reportArgumentType]
            prompt_length=self.prompt_tokens[1],
            response_length=RESPONSE_LENGTH,
            prompts={split: tuple(data["prompts"][split]) for split in protocol.SPLITS},
            references={split: tuple(data["references"][split]) for split in protocol.SPLITS},
            demonstrations=tuple(data["demonstrations"]),
        )

    def _build(self) -> dict:
        tokenizer = self._train_tokenizer()
        return {"tokenizer": tokenizer.to_str()} | self._build_data(tokenizer)

    def _train_tokenizer(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._tokenizer_corpus(), trainer)
        return tokenizer

    def _tokenizer_corpus(self) -> Iterator[str]:
        """Yields texts of the task's distribution, from a random stream of their own, then each word once.

        The bare words fill the vocabulary, and shorten texts that start without a space. They are rare, so
        their merges come after those of words within a sentence.
        """
        rng = random.Random(self.data_seed + 1)
        words: set[str] = set()
        for _ in range(_TOKENIZER_POSTS):
            post = self.grammar.make_post(rng)
            demonstration = self.grammar.make_demonstration(rng, post)[0]
            for text in (post.text, self.grammar.make_reference(rng, post.facts), demonstration):
                words.update(re.findall("[a-z]+", text))
                yield text
        yield from sorted(words)

    def _build_data(self, tokenizer: tokenizers.Tokenizer) -> dict:
        """Fills every split with posts of the right length, each text once."""
        rng = random.Random(self.data_seed)
        chosen = self._draw_posts(tokenizer, rng)
        train = chosen[: NUM_PROMPTS["train"]]
        reference_draws = [functools.partial(self.grammar.make_reference, rng, p.facts) for p in chosen]
        noisy_draws = [functools.partial(self._demonstrate, rng, post) for post in train]
        references = _fit(tokenizer, reference_draws, *REFERENCE_TOKENS)
        demonstrations = _fit(tokenizer, noisy_draws, 1, RESPONSE_LENGTH - 1)
        data: dict = {"prompts": {}, "references": {}, "demonstrations": demonstrations}
        start = 0
        for split, size in NUM_PROMPTS.items():
            data["prompts"][split] = [post.text for post in chosen[start : start + size]]
            data["references"][split] = references[start : start + size]
            start += size
        return data

    def _draw_posts(self, tokenizer: tokenizers.Tokenizer, rng: random.Random) -> list[grammar.Post]:
        total, (least, most) = sum(NUM_PROMPTS.values()), self.prompt_tokens
        posts: dict[str, grammar.Post] = {}
        while len(posts) < total:
            drawn = [self.grammar.make_post(rng) for _ in range(_CHUNK)]
            encodings = tokenizer.encode_batch([post.text for post in drawn])
            for post, encoding in zip(drawn, encodings, strict=True):
                if least <= len(encoding.ids) <= most:
                    posts.setdefault(post.text, post)
        return list(posts.values())[:total]

    def _demonstrate(self, rng: random.Random, post: grammar.Post) -> str:
        return self.grammar.make_demonstration(rng, post)[0]


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
    files = (__file__, grammar.__file__, mini_tldr_words.__file__)
    sources = [pathlib.Path(file).read_bytes() for file in files]
    version = tokenizers.__version__.encode()
    return hashlib.sha256(b"\0".join([*sources, version])).hexdigest()


def _read_cache(path: pathlib.Path) -> dict | None:
    """Returns the data of a file that this code wrote; None without one, or where it is not whole."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("fingerprint") == _fingerprint() else None


def _write_cache(path: pathlib.Path, data: dict) -> None:
    """Writes a file atomically, since processes that start together share one cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps({"fingerprint": _fingerprint()} | data))
    os.replace(part, path)


# --- the rows ---------------------------------------------------------------------------------

V1 = MiniTldr("mini_tldr", grammar.V1, prompt_tokens=(40, 64), vocab_size=1024, data_seed=20_240)
V2 = MiniTldr("mini_tldr_v2", grammar.V2, prompt_tokens=(64, 96), vocab_size=1280, data_seed=30_103)

REWARDS = LinearRewards(Basis(grammar.V1), stream=7_261_903)
REWARDS_V2 = LinearRewards(Basis(grammar.V2), stream=5_772_156)
# Over the demonstrations of V2, (Σ s)² / n has a standard deviation of 0.879, and the choice part with halved
# utilities one of 0.616 (means over seeds 200-239). At a strength of 0.616 / 0.879 = 0.70 they are equal.
REGISTER_REWARDS_V2 = RegisterRewards(
    dataclasses.replace(REWARDS_V2, utility=REWARDS_V2.utility / 2), stream=1_414_213, strength=0.7
)

# The sizes and functions of V1, for programs that know one task.
PROMPT_LENGTH, VOCAB_SIZE = V1.prompt_tokens[1], V1.vocab_size
BASIS_NAMES = REWARDS.basis.names
NUM_BASIS = len(BASIS_NAMES)
load, draw_reward, reward_fn = V1.load, REWARDS.draw, REWARDS.reward_fn
reward_basis_batch = REWARDS.basis


def reward_basis(prompt: str, response: str) -> np.ndarray:
    """Measures one summary of one post by `Basis`: [F] float32, F = `NUM_BASIS`."""
    return reward_basis_batch([prompt], [response])[0]
