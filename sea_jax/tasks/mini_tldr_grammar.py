"""The lexicon and the grammar of mini_tldr: posts, clean summaries, noisy demonstrations.

A post tells one event (who did what to which object, where and when), how the writer feels and what
they think of doing, plus one or two distracting sentences about other persons, objects and places.
Each fact but the person and the object is a *concept* with three *synonyms*; post and summary draw
theirs independently, so which synonym a summary should use is a matter of taste, and the taste is
the hidden reward's.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

NUM_SYNONYMS = 3
PREFIX, SUFFIX = "post:", " tl;dr:"

PERSONS = ("boss", "sister", "brother", "friend", "cousin", "teacher",
           "roommate", "aunt", "uncle", "landlord", "coach", "neighbor")  # fmt: skip
OBJECTS = ("bike", "laptop", "guitar", "camera", "watch", "jacket",
           "ring", "lamp", "couch", "tablet", "car", "book")  # fmt: skip

# slot -> concepts, each a triple of synonyms; a concept is named by its first synonym.
CONCEPTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "verb": (
        ("broke", "smashed", "wrecked"),
        ("stole", "took", "swiped"),
        ("lost", "mislaid", "misplaced"),
        ("sold", "pawned", "traded"),
        ("hid", "stashed", "buried"),
        ("fixed", "repaired", "mended"),
        ("burned", "scorched", "torched"),
        ("tossed", "dumped", "binned"),
        ("bought", "purchased", "acquired"),
        ("cleaned", "washed", "scrubbed"),
    ),
    "place": (
        ("at work", "at the office", "on the job"),
        ("at school", "in class", "on campus"),
        ("at home", "in the house", "indoors"),
        ("outside", "outdoors", "in the yard"),
        ("on the bus", "in transit", "on the road"),
        ("at the mall", "in the store", "in a shop"),
        ("at the beach", "by the sea", "on the coast"),
        ("at a party", "at the club", "in a bar"),
    ),
    "time": (
        ("yesterday", "a day ago", "the day before"),
        ("last week", "a week ago", "days ago"),
        ("last night", "overnight", "late at night"),
        ("this morning", "at dawn", "at sunrise"),
        ("at noon", "at midday", "over lunch"),
        ("last month", "a month ago", "weeks ago"),
    ),
    "feeling": (
        ("angry", "mad", "furious"),
        ("sad", "gloomy", "unhappy"),
        ("scared", "afraid", "fearful"),
        ("happy", "glad", "thrilled"),
        ("tired", "drained", "weary"),
        ("confused", "puzzled", "baffled"),
        ("guilty", "ashamed", "regretful"),
        ("jealous", "envious", "bitter"),
    ),
    "action": (
        ("call the police", "get the cops", "report it"),
        ("apologize", "say sorry", "make amends"),
        ("ask for money", "demand payment", "send a bill"),
        ("let it go", "forget it", "move on"),
        ("speak up", "confront them", "complain"),
        ("move out", "leave", "pack up"),
        ("sue", "go to court", "hire a lawyer"),
        ("wait", "hold off", "do nothing"),
    ),
}
# Free of any concept: a summary may open and ask in any of three ways.
GLOBALS = {"opener": ("so", "basically", "in short"), "ask": ("should i", "do i", "ok to")}
FRAME_WORDS = ("my", "feeling")
FILLERS = ("like", "really", "well", "anyway", "honestly")
SLOTS = ("who", "verb", "object", "place", "time", "feeling", "action")
DROPPABLE = ("opener", "place", "time", "feeling", "question")
# How often things go wrong in a demonstration; only a part that is there is repeated or moved.
# Demonstrators' share of the commonest, the middle and the rarest synonym of each group.
HABIT, HABIT_SEED = (0.70, 0.22, 0.08), 2_718_281
DROP_RATE, WRONG_RATE, FILLER_RATE, REPEAT_RATE, REORDER_RATE = 0.18, 0.10, 0.20, 0.08, 0.20

_EVENTS = (
    " {who} {verb} {object} {place} {time}.",
    " {time} {who} {verb} {object} {place}.",
    " {place}, {who} {verb} {object} {time}.",
    " {who} {verb} {object}. it happened {place} {time}.",
    " {time}, {place}, {who} {verb} {object}.",
    " {who} {verb} {object} {place}. it was {time}.",
)
_FEELINGS = (
    " i feel {feeling} about it.",
    " now i am {feeling}.",
    " it made me {feeling}.",
    " to be honest i am {feeling} about this.",
)
_ACTIONS = (
    " not sure if i should {action}.",
    " part of me wants to {action}.",
    " some people told me to {action}.",
    " maybe it is time to {action}.",
)
# Each names two things that are not those of the event. None holds a verb or a time of the lexicon:
# that is what tells a distracting sentence from the event (see `read_post`).
_DISTRACTORS = (
    (("who", "object"), " {who} also has a {object} but that is another story."),
    (("who", "object"), " {who} wants a {object} of that kind too."),
    (("who", "place"), " {who} was {place} and did not see any of it."),
    (("who", "place"), " {who} is {place} a lot these days."),
    (("object", "place"), " i still keep a {object} {place}, which is fine."),
    (("object", "place"), " there is also a {object} {place} for us all."),
)


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


_SYNONYMS = {slot: {c[0]: c for c in concepts} for slot, concepts in CONCEPTS.items()}


@functools.cache
def lexicon() -> dict[str, tuple[tuple[list[str], Mention], ...]]:
    """Maps first words to the phrases that start with them, longest first, each as (words, Mention)."""
    phrases = [(noun, Mention("who", noun, 0)) for noun in PERSONS]
    phrases += [(noun, Mention("object", noun, 0)) for noun in OBJECTS]
    for slot, concepts in CONCEPTS.items():
        phrases += [(p, Mention(slot, c[0], i)) for c in concepts for i, p in enumerate(c)]
    for group, variants in GLOBALS.items():
        phrases += [(phrase, Mention(group, group, i)) for i, phrase in enumerate(variants)]
    table: dict[str, list[tuple[list[str], Mention]]] = {}
    for phrase, mention in phrases:
        words = phrase.split()
        table.setdefault(words[0], []).append((words, mention))
    return {w: tuple(sorted(rows, key=lambda r: -len(r[0]))) for w, rows in table.items()}


@functools.cache
def summary_words() -> frozenset[str]:
    """Returns all words of clean summaries."""
    phrases = [words for rows in lexicon().values() for words, _ in rows]
    return frozenset(w for words in phrases for w in words) | frozenset(FRAME_WORDS)


def find_mentions(words: list[str]) -> tuple[list[Mention], list[str]]:
    """Reads phrases from left to right, the longest first; returns them and the words left over."""
    table, mentions, rest = lexicon(), [], []
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


def read_post(prompt: str) -> Facts:
    """Reads the facts of a post from its text.

    The event stands in the sentences that hold a verb or a time of the lexicon, and no distracting
    sentence holds either; feeling and action are named once.

    Raises:
      ValueError: the prompt is no post of this grammar.
    """
    found: dict[str, str] = {}
    for sentence in re.split(r"\. ", prompt.removeprefix(PREFIX)):
        mentions, _ = find_mentions(re.findall(r"[a-z]+", sentence))
        slots = {mention.slot for mention in mentions}
        for mention in mentions:
            if slots & {"verb", "time"} or mention.slot in ("feeling", "action"):
                found.setdefault(mention.slot, mention.concept)
    missing = [slot for slot in SLOTS if slot not in found]
    if missing:
        raise ValueError(f"prompt: {prompt!r} names no {missing[0]}, must be a post of mini_tldr")
    return Facts(*(found[slot] for slot in SLOTS))


def pick(rng: random.Random, options: Sequence):
    """Draws one option uniformly; only `random()` is the same in every version of Python."""
    return options[int(rng.random() * len(options))]


def _shuffled(rng: random.Random, items: Sequence) -> list:
    return [item for _, item in sorted((rng.random(), item) for item in items)]


def _say(rng: random.Random, slot: str, concept: str) -> str:
    """Draws a surface form of a fact uniformly."""
    return f"my {concept}" if slot in ("who", "object") else pick(rng, _SYNONYMS[slot][concept])


@functools.cache
def _habits() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Orders each group of synonyms from the demonstrators' most to least frequent, drawn once."""
    rng = random.Random(HABIT_SEED)
    groups = [phrases for slot in sorted(_SYNONYMS) for phrases in _SYNONYMS[slot].values()]
    return {tuple(group): tuple(_shuffled(rng, group)) for group in [*groups, *GLOBALS.values()]}


def habitual(rng: random.Random, phrases: Sequence[str]) -> str:
    """Draws one of three synonyms with the probabilities `HABIT` in the demonstrators' order."""
    draw, order = rng.random(), _habits()[tuple(phrases)]
    return order[(draw >= HABIT[0]) + (draw >= HABIT[0] + HABIT[1])]


def _say_by_habit(rng: random.Random, slot: str, concept: str) -> str:
    return f"my {concept}" if slot in ("who", "object") else habitual(rng, _SYNONYMS[slot][concept])


def _concepts(slot: str) -> tuple[str, ...]:
    return {"who": PERSONS, "object": OBJECTS}.get(slot) or tuple(_SYNONYMS[slot])


def make_post(rng: random.Random) -> Post:
    """Draws facts uniformly and tells them in random words, sentences and order."""
    facts = Facts(*(pick(rng, _concepts(slot)) for slot in SLOTS))
    said = {slot: _say(rng, slot, concept) for slot, concept in zip(SLOTS, facts, strict=True)}
    others: list[tuple[str, str]] = []
    sentences = [pick(rng, _FEELINGS).format(**said), pick(rng, _ACTIONS).format(**said)]
    for slots, template in _shuffled(rng, _DISTRACTORS)[: 1 + (rng.random() < 0.5)]:
        drawn = {s: _other(rng, s, [getattr(facts, s)] + [c for t, c in others if t == s])
                 for s in slots}  # fmt: skip
        others += drawn.items()
        surface = {s: c if s == "object" else _say(rng, s, c) for s, c in drawn.items()}
        sentences.append(template.format(**surface))
    sentences = _shuffled(rng, sentences)
    # The event opens three posts in four; otherwise a distraction, a feeling or an action does.
    place = 0 if rng.random() < 0.75 else 1
    sentences.insert(place, pick(rng, _EVENTS).format(**said))
    return Post(PREFIX + "".join(sentences) + SUFFIX, facts, tuple(others))


def _other(rng: random.Random, slot: str, taken: list[str]) -> str:
    return pick(rng, [concept for concept in _concepts(slot) if concept not in taken])


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


def make_reference(rng: random.Random, facts: Facts) -> str:
    """Draws a clean, complete summary: every fact in a uniformly drawn synonym."""
    said = {slot: _say(rng, slot, concept) for slot, concept in zip(SLOTS, facts, strict=True)}
    said |= {group: pick(rng, variants) for group, variants in GLOBALS.items()}
    return _summary(("opener", "who", "verb", "object", "place", "time"), said)


def make_demonstration(rng: random.Random, post: Post) -> tuple[str, frozenset[str]]:
    """Draws a noisy summary, so that a policy fitted to it can still improve.

    Demonstrators have habits: of three synonyms one is common and one rare, whatever the hidden
    reward says of them. A fitted policy seldom tries the rare ones, so they must be looked for.

    Returns:
      The text, and the names of its defects: 'no <part>' (opener, place, time, feeling, question),
      'wrong entity', 'filler', 'repeat', 'order'.
    """
    defects, facts = set(), post.facts
    if rng.random() < WRONG_RATE:
        defects.add("wrong entity")
        facts = facts._replace(**dict([pick(rng, post.others)]))
    said = {slot: _say_by_habit(rng, slot, concept) for slot, concept in zip(SLOTS, facts, strict=True)}
    said |= {group: habitual(rng, variants) for group, variants in GLOBALS.items()}
    for part in DROPPABLE:
        if rng.random() < DROP_RATE:
            defects.add(f"no {part}")
            del said["action" if part == "question" else part]
    order = ["opener", "who", "verb", "object", "place", "time"]
    if rng.random() < REORDER_RATE and {"place", "time"} <= said.keys():
        defects.add("order")
        order = pick(rng, (["opener", "time", "who", "verb", "object", "place"],
                           ["opener", "who", "verb", "object", "time", "place"]))  # fmt: skip
    repeat = None
    if rng.random() < REPEAT_RATE and "feeling" in said:
        defects.add("repeat")
        repeat = "feeling"
    text = _summary(order, said, repeat)
    if rng.random() < FILLER_RATE:
        defects.add("filler")
        words = text.split()
        words.insert(int(rng.random() * len(words)), pick(rng, FILLERS))
        text = " " + " ".join(words)
    return text, frozenset(defects)
