"""The grammar of the miniature: posts, clean summaries, noisy demonstrations; `V1` and `V2` are its two rows.

A post tells one event (who did what to which object, where and when), how the writer feels and what
they think of doing, plus a few distracting sentences about other persons, objects and places.
Each fact but the person and the object is a *concept* with three *synonyms*; post and summary draw
theirs independently, so which synonym a summary should use is a matter of taste, and the taste is
the hidden reward's.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from sea_jax.tasks import mini_tldr_words as words_lib
from sea_jax.tasks.mini_tldr_words import ACTIONS, EVENTS, FEELINGS, FILLERS, FRAME_WORDS, GLOBALS, Words

NUM_SYNONYMS = 3
PREFIX, SUFFIX = "post:", " tl;dr:"
SLOTS = ("who", "verb", "object", "place", "time", "feeling", "action")
NOUNS = ("who", "object")
DROPPABLE = ("opener", "place", "time", "feeling", "question")


class Facts(NamedTuple):
    """The facts that a summary must state. `who` and `object` are nouns; the rest are concept names."""

    who: str
    verb: str
    object: str
    place: str
    time: str
    feeling: str
    action: str


class Mention(NamedTuple):
    """A phrase of the lexicon: its slot (or global group), its concept, and which synonym it is."""

    slot: str
    concept: str
    synonym: int


class Post(NamedTuple):
    """A post, its facts, and the (slot, concept) pairs its distracting sentences name."""

    text: str
    facts: Facts
    others: tuple[tuple[str, str], ...]


class Rates(NamedTuple):
    """Rates of the defects of demonstrations; only a part that is there is repeated or moved."""

    drop: float  # of each of DROPPABLE
    wrong: float
    filler: float
    repeat: float
    reorder: float


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """Draws posts and summaries about one set of words, and reads them.

    Attributes:
      name: of the task, for errors.
      words: see `Words`.
      fewest_distractors: distracting sentences of a post; half of the posts have one more.
      event_places: how many sentences stand before the event; each entry is equally likely.
      habit: demonstrators' share of the commonest, the middle and the rarest synonym of each group.
      habit_seed: decides which synonym is common.
      rates: see `Rates`.
    """

    name: str
    words: Words
    fewest_distractors: int
    event_places: tuple[int, ...]
    habit: tuple[float, float, float]
    habit_seed: int
    rates: Rates

    @functools.cached_property
    def synonyms(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Slot -> name of a concept -> its synonyms."""
        return {slot: {c[0]: c for c in concepts} for slot, concepts in self.words.concepts.items()}

    @functools.cached_property
    def lexicon(self) -> dict[str, tuple[tuple[list[str], Mention], ...]]:
        """First words -> the phrases that start with them, longest first, each as (words, Mention)."""
        phrases = [(noun, Mention("who", noun, 0)) for noun in self.words.persons]
        phrases += [(noun, Mention("object", noun, 0)) for noun in self.words.objects]
        for slot, concepts in self.synonyms.items():
            phrases += [(p, Mention(slot, name, i)) for name, c in concepts.items() for i, p in enumerate(c)]
        for group, variants in GLOBALS.items():
            phrases += [(phrase, Mention(group, group, i)) for i, phrase in enumerate(variants)]
        table: dict[str, list[tuple[list[str], Mention]]] = {}
        for phrase, mention in phrases:
            words = phrase.split()
            table.setdefault(words[0], []).append((words, mention))
        return {w: tuple(sorted(rows, key=lambda r: -len(r[0]))) for w, rows in table.items()}

    @functools.cached_property
    def summary_words(self) -> frozenset[str]:
        """All words of clean summaries."""
        phrases = [words for rows in self.lexicon.values() for words, _ in rows]
        return frozenset(w for words in phrases for w in words) | frozenset(FRAME_WORDS)

    def find_mentions(self, words: list[str]) -> tuple[list[Mention], list[str]]:
        """Reads phrases from left to right, the longest first; returns them and the words left over."""
        table, mentions, rest = self.lexicon, [], []
        position, end = 0, len(words)
        while position < end:
            for phrase, mention in table.get(words[position], ()):
                if len(phrase) == 1 or words[position : position + len(phrase)] == phrase:
                    mentions.append(mention)
                    position += len(phrase)
                    break
            else:
                rest.append(words[position])
                position += 1
        return mentions, rest

    def read_post(self, prompt: str) -> Facts:
        """Reads the facts of a post from its text.

        The event stands in the sentences that hold a verb or a time of the lexicon, and no distracting
        sentence holds either. The writer's feeling and action stand in the sentences that name no person;
        each is named once.

        Raises:
          ValueError: the prompt is no post of this grammar.
        """
        found: dict[str, str] = {}
        for sentence in re.split(r"\. ", prompt.removeprefix(PREFIX)):
            mentions, _ = self.find_mentions(re.findall(r"[a-z]+", sentence))
            slots = {mention.slot for mention in mentions}
            told = SLOTS if slots & {"verb", "time"} else () if "who" in slots else ("feeling", "action")
            for mention in mentions:
                if mention.slot in told:
                    found.setdefault(mention.slot, mention.concept)
        missing = [slot for slot in SLOTS if slot not in found]
        if missing:
            raise ValueError(f"prompt: {prompt!r} names no {missing[0]}, must be a post of {self.name}")
        return Facts(*(found[slot] for slot in SLOTS))

    def make_post(self, rng: random.Random) -> Post:
        """Draws facts uniformly and tells them in random words, sentences and order."""
        facts = Facts(*(pick(rng, self.concepts(slot)) for slot in SLOTS))
        said = {slot: self._say(rng, slot, concept) for slot, concept in zip(SLOTS, facts, strict=True)}
        others: list[tuple[str, str]] = []
        sentences = [pick(rng, FEELINGS).format(**said), pick(rng, ACTIONS).format(**said)]
        drawn = _shuffled(rng, self.words.distractors)
        for slots, template in drawn[: self.fewest_distractors + (rng.random() < 0.5)]:
            named = {s: self._other(rng, s, [getattr(facts, s)] + [c for t, c in others if t == s])
                     for s in slots}  # fmt: skip
            others += named.items()
            surface = {s: c if s == "object" else self._say(rng, s, c) for s, c in named.items()}
            sentences.append(template.format(**surface))
        sentences = _shuffled(rng, sentences)
        sentences.insert(pick(rng, self.event_places), pick(rng, EVENTS).format(**said))
        return Post(PREFIX + "".join(sentences) + SUFFIX, facts, tuple(others))

    def make_reference(self, rng: random.Random, facts: Facts) -> str:
        """Draws a clean, complete summary: every fact in a uniformly drawn synonym."""
        said = {slot: self._say(rng, slot, concept) for slot, concept in zip(SLOTS, facts, strict=True)}
        said |= {group: pick(rng, variants) for group, variants in GLOBALS.items()}
        return _summary(("opener", "who", "verb", "object", "place", "time"), said)

    def make_demonstration(self, rng: random.Random, post: Post) -> tuple[str, frozenset[str]]:
        """Draws a noisy summary, so that a policy fitted to it can still improve.

        Demonstrators have habits: of three synonyms one is common and one rare, whatever the hidden
        reward says of them. A fitted policy seldom tries the rare ones, so they must be looked for.

        Returns:
          The text, and the names of its defects: 'no <part>' (opener, place, time, feeling, question),
          'wrong entity', 'filler', 'repeat', 'order'.
        """
        defects, facts, rates = set(), post.facts, self.rates
        if rng.random() < rates.wrong:
            defects.add("wrong entity")
            facts = facts._replace(**dict([pick(rng, post.others)]))
        said = {slot: self._say_by_habit(rng, slot, c) for slot, c in zip(SLOTS, facts, strict=True)}
        said |= {group: self._habitual(rng, variants) for group, variants in GLOBALS.items()}
        for part in DROPPABLE:
            if rng.random() < rates.drop:
                defects.add(f"no {part}")
                del said["action" if part == "question" else part]
        order = ["opener", "who", "verb", "object", "place", "time"]
        if rng.random() < rates.reorder and {"place", "time"} <= said.keys():
            defects.add("order")
            order = pick(rng, (["opener", "time", "who", "verb", "object", "place"],
                               ["opener", "who", "verb", "object", "time", "place"]))  # fmt: skip
        repeat = None
        if rng.random() < rates.repeat and "feeling" in said:
            defects.add("repeat")
            repeat = "feeling"
        text = _summary(order, said, repeat)
        if rng.random() < rates.filler:
            defects.add("filler")
            words = text.split()
            words.insert(int(rng.random() * len(words)), pick(rng, FILLERS))
            text = " " + " ".join(words)
        return text, frozenset(defects)

    def concepts(self, slot: str) -> tuple[str, ...]:
        """Returns the nouns of a slot, or the names of its concepts."""
        nouns = {"who": self.words.persons, "object": self.words.objects}
        return nouns.get(slot) or tuple(self.synonyms[slot])

    def _say(self, rng: random.Random, slot: str, concept: str) -> str:
        """Draws a surface form of a fact uniformly."""
        return f"my {concept}" if slot in NOUNS else pick(rng, self.synonyms[slot][concept])

    def _say_by_habit(self, rng: random.Random, slot: str, concept: str) -> str:
        return f"my {concept}" if slot in NOUNS else self._habitual(rng, self.synonyms[slot][concept])

    def _habitual(self, rng: random.Random, phrases: Sequence[str]) -> str:
        """Draws one of three synonyms with the probabilities `habit` in the demonstrators' order."""
        draw, order = rng.random(), self._habits[tuple(phrases)]
        return order[(draw >= self.habit[0]) + (draw >= self.habit[0] + self.habit[1])]

    @functools.cached_property
    def _habits(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Each group of synonyms, from the demonstrators' most to least frequent, drawn once."""
        rng = random.Random(self.habit_seed)
        groups = [phrases for slot in sorted(self.synonyms) for phrases in self.synonyms[slot].values()]
        return {tuple(group): tuple(_shuffled(rng, group)) for group in [*groups, *GLOBALS.values()]}

    def _other(self, rng: random.Random, slot: str, taken: list[str]) -> str:
        return pick(rng, [concept for concept in self.concepts(slot) if concept not in taken])


def pick(rng: random.Random, options: Sequence):
    """Draws one option uniformly; only `random()` is the same in every version of Python."""
    return options[int(rng.random() * len(options))]


def _shuffled(rng: random.Random, items: Sequence) -> list:
    return [item for _, item in sorted((rng.random(), item) for item in items)]


def _summary(order: Sequence[str], said: dict[str, str], repeat: str | None = None) -> str:
    """Joins the parts of a summary; `order` is that of the event's parts."""
    event = " ".join(said[part] for part in order if part in said)
    clauses = {"event": event}
    if "feeling" in said:
        clauses["feeling"] = f"feeling {said['feeling']}"
    if "action" in said:
        clauses["question"] = f"{said['ask']} {said['action']}"
    texts = []
    for name, clause in clauses.items():
        texts += [clause] * (2 if name == repeat else 1)
    return " " + ", ".join(texts) + ("?" if "question" in clauses else ".")


V1 = Grammar(
    "mini_tldr",
    words_lib.V1,
    fewest_distractors=1,
    event_places=(0, 0, 0, 1),
    habit=(0.70, 0.22, 0.08),
    habit_seed=2_718_281,
    rates=Rates(drop=0.18, wrong=0.10, filler=0.20, repeat=0.08, reorder=0.20),
)
# Fewer defects than V1: a fitted policy covers the facts, and what is left to learn is taste.
V2 = Grammar(
    "mini_tldr_v2",
    words_lib.V2,
    fewest_distractors=3,
    event_places=(0, 0, 1, 2),
    habit=(0.60, 0.27, 0.13),
    habit_seed=1_618_033,
    rates=Rates(drop=0.05, wrong=0.03, filler=0.05, repeat=0.03, reorder=0.20),
)

# The functions of V1, for programs that know one task.
make_post, make_reference, make_demonstration = V1.make_post, V1.make_reference, V1.make_demonstration
