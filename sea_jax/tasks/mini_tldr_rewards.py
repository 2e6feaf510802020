"""The hidden rewards of the miniature: what they measure, and the families that their seeds draw from.

`Basis` measures a summary. `LinearRewards` is linear in the basis, mostly a hidden preference among synonyms;
`RegisterRewards` prefers one register throughout as well. Each seed is another oracle of its family.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from sea_jax.tasks.mini_tldr_grammar import NOUNS, SLOTS, Facts, Grammar, Mention
from sea_jax.tasks.mini_tldr_words import GLOBALS

RewardFn = Callable[[Sequence[str], Sequence[str]], np.ndarray]

_SLOT = {slot: index for index, slot in enumerate(SLOTS)}
_WRONG_CAP, _UNKNOWN_CAP, _REPEAT_CAP = 3, 5, 3
_MARKS = frozenset(".,?")
# Runs of white space count as unknown words, so that a response gets nothing for free.
_WORD = re.compile(r"[.,?]|[^\s.,?]+|\s{2,}|[^\S ]")


class Basis:
    """Measures summaries of the posts of one grammar.

    - choice/<slot>/<phrase>: 1 if that synonym is used and names the post's own concept; for the
      openers and the ask phrases, whenever used.
    - cover/<slot>: 1 if the post's fact is named, in whatever surface form.
    - wrong/entity, wrong/concept: how many persons and objects, and how many other concepts, are
      named that are not the post's; each at most 3.
    - length/words, length/over_16, length/over_20: words, and words beyond 16 and beyond 20.
    - junk/unknown: words no clean summary could hold, stray punctuation and white space, at most 5;
      junk/repeated: phrases said again and words doubled, at most 3.

    Attributes:
      names: of the F entries.
      num_groups: groups of three synonyms; the first 3 · `num_groups` entries are the choices.
      cover, wrong, brevity, junk: the first entry of each kind; brevity is of the length entries.
    """

    def __init__(self, grammar: Grammar):
        self.grammar = grammar
        groups = [(slot, name, c) for slot, named in grammar.synonyms.items() for name, c in named.items()]
        groups += [(group, group, variants) for group, variants in GLOBALS.items()]
        choices = [(Mention(s, c, i), f"choice/{s}/{p}") for s, c, ps in groups for i, p in enumerate(ps)]
        self.num_groups, self.cover = len(groups), len(choices)
        self.wrong = self.cover + len(SLOTS)
        self.brevity, self.junk = self.wrong + 2, self.wrong + 5
        self.names: tuple[str, ...] = (
            *(name for _, name in choices),
            *(f"cover/{slot}" for slot in SLOTS),
            *("wrong/entity", "wrong/concept"),
            *("length/words", "length/over_16", "length/over_20"),
            *("junk/unknown", "junk/repeated"),
        )
        self._choice_column = {mention: column for column, (mention, _) in enumerate(choices)}
        self._facts: Callable[[str], Facts] = functools.lru_cache(maxsize=1 << 16)(grammar.read_post)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Measures N pairs.

        Args:
          prompts: N posts of the grammar.
          responses: N texts of any kind, empty ones included.

        Returns:
          [N, F] float32.

        Raises:
          ValueError: a prompt is no post of the grammar, or the two lengths differ.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"responses: {len(responses)} given, must be one per prompt, {len(prompts)}")
        rows = np.zeros((len(prompts), len(self.names)), np.float32)
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            self._measure(row, prompt, response)
        return rows

    def _measure(self, row: np.ndarray, prompt: str, response: str) -> None:
        facts = self._facts(prompt)
        pieces = _WORD.findall(response)
        mentions, rest = self.grammar.find_mentions(pieces)
        said = set(mentions)
        wrong: tuple[set, set] = (set(), set())
        for mention in said:
            slot = _SLOT.get(mention.slot)
            if slot is not None and facts[slot] != mention.concept:
                wrong[mention.slot not in NOUNS].add(mention[:2])
                continue
            if slot is not None:
                row[self.cover + slot] = 1
            column = self._choice_column.get(mention)
            if column is not None:
                row[column] = 1
        row[self.wrong] = min(len(wrong[0]), _WRONG_CAP)
        row[self.wrong + 1] = min(len(wrong[1]), _WRONG_CAP)
        words = sum(piece not in _MARKS for piece in pieces)
        row[self.brevity : self.brevity + 3] = words, max(0, words - 16), max(0, words - 20)
        unknown, repeated = self._junk(pieces, rest)
        repeated += len(mentions) - len(said)
        row[self.junk : self.junk + 2] = min(unknown, _UNKNOWN_CAP), min(repeated, _REPEAT_CAP)

    def _junk(self, pieces: list[str], rest: list[str]) -> tuple[int, int]:
        """Counts unknown words and stray marks, and the words of no phrase that are doubled."""
        known = self.grammar.summary_words
        unknown, repeated = sum(piece not in known and piece not in _MARKS for piece in rest), 0
        before = ","  # a mark that opens the response or follows a mark is stray
        for piece in pieces:
            if piece in _MARKS:
                unknown += before in _MARKS
            elif piece == before and piece in rest:
                repeated += 1
            before = piece
        return unknown, repeated


@dataclasses.dataclass(frozen=True, eq=False)
class LinearRewards:
    """A family of rewards r*(x, y) = basis(x, y) · weights.

    Attributes:
      basis: see `Basis`.
      stream: separates these draws from other uses of the same seed.
      utility: of the preferred synonym of each group, in nats; the others have 0 and −utility.
    """

    basis: Basis
    stream: int
    utility: float = 0.6

    def draw(self, seed: int) -> np.ndarray:
        """Draws the weights of one hidden reward, with independent entries.

        - choice: for each group of three synonyms, a uniform permutation of (-utility, 0, +utility);
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
        basis, rng = self.basis, np.random.default_rng([self.stream, seed])
        weights = np.zeros(len(basis.names), np.float32)
        weights[: basis.cover] = _permuted(rng, self.utility, basis.num_groups)
        weights[basis.cover : basis.wrong] = rng.uniform(0.3, 1.0, len(SLOTS))
        weights[basis.wrong : basis.brevity] = rng.uniform(-2.0, -1.0, 2)
        weights[basis.brevity : basis.junk] = rng.uniform([-0.06, -0.15, -0.3], [-0.02, -0.05, -0.1])
        weights[basis.junk :] = -0.5
        return weights

    combine = staticmethod(np.matmul)  # rows [N, F] of the basis, S draws [F, S] -> rewards [N, S]

    def reward_fn(self, seed: int) -> RewardFn:
        """Returns r* of one seed: (prompts, responses), B texts each, -> [B] float32."""
        weights = self.draw(seed)
        # Not a matrix product, whose last bits depend on the batch: a reward must not depend on it, or a
        # service that batches would give other labels.
        return lambda prompts, responses: (self.basis(prompts, responses) * weights).sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class RegisterRewards:
    """A family of rewards that no linear function of the basis expresses.

    r*(x, y) = linear part + c · (Σ_g s_g)² / n, over the n choices of the basis that the summary makes. Every
    synonym has a hidden register s ∈ {−1, 0, +1}, e.g. casual, neutral and formal, and a summary of one
    register is preferred to a mixture. Both registers are liked equally.

    Attributes:
      linear: family of the linear part; a seed draws from it what it draws for itself.
      stream: of the registers.
      strength: c, in nats.
    """

    linear: LinearRewards
    stream: int
    strength: float

    @property
    def basis(self) -> Basis:
        """The measurements, those of the linear part."""
        return self.linear.basis

    def draw(self, seed: int) -> np.ndarray:
        """Draws one hidden reward.

        Args:
          seed: as in `LinearRewards.draw`.

        Returns:
          [2, F] float32: the linear weights, and √c · s, where each group of three synonyms has a uniform
          permutation of (-1, 0, +1) and all other entries are 0.
        """
        rng = np.random.default_rng([self.stream, seed])
        registers = np.zeros(len(self.basis.names), np.float32)
        registers[: self.basis.cover] = _permuted(rng, self.strength**0.5, self.basis.num_groups)
        return np.stack([self.linear.draw(seed), registers])

    def combine(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Returns the rewards [N, S] f32 of rows [N, F] of the basis under S draws [2, F, S]."""
        return _register_reward(rows @ draws[0], rows @ draws[1], self._choices(rows)[:, None])

    def reward_fn(self, seed: int) -> RewardFn:
        """Returns r* of one seed, as `LinearRewards.reward_fn` does."""
        weights, registers = self.draw(seed)

        def reward(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
            rows = self.basis(prompts, responses)
            return _register_reward((rows * weights).sum(-1), (rows * registers).sum(-1), self._choices(rows))

        return reward

    def _choices(self, rows: np.ndarray) -> np.ndarray:
        """Counts the choices of each row [N, F]: [N] f32."""
        return rows[:, : self.basis.cover].sum(-1)


def _permuted(rng: np.random.Generator, size: float, num_groups: int) -> np.ndarray:
    """Draws a uniform permutation of (-size, 0, +size) for each group, [3 · num_groups]."""
    return rng.permuted(np.tile([-size, 0.0, size], (num_groups, 1)), axis=1).ravel()


def _register_reward(linear: np.ndarray, registers: np.ndarray, choices: np.ndarray) -> np.ndarray:
    return linear + registers**2 / np.maximum(choices, 1)  # a summary without choices has no register
