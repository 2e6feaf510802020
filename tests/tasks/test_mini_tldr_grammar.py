"""The grammars of the miniature: no phrase is ambiguous, and every post can be read back."""

import itertools
import random
import re

import numpy as np
import pytest

from sea_jax.tasks import mini_tldr_grammar as grammar
from sea_jax.tasks import mini_tldr_words as words_lib

EACH = pytest.mark.parametrize("g", [grammar.V1, grammar.V2], ids=lambda g: g.name)


@EACH
def test_every_post_can_be_read_back(g):
    rng = random.Random(0)
    for _ in range(4000):
        post = g.make_post(rng)
        assert g.read_post(post.text) == post.facts
        assert all(getattr(post.facts, slot) != concept for slot, concept in post.others)


def test_the_others_of_v2_have_feelings_and_plans_too():
    posts = [grammar.V2.make_post(random.Random(seed)) for seed in range(500)]
    assert {slot for post in posts for slot, _ in post.others} == {
        "who", "object", "place", "feeling", "action"}  # fmt: skip
    sentences = {post.text.count(". ") for post in posts}
    assert sentences == {6, 7, 8}  # feeling, action, an event of one or two, and 3 or 4 others


@EACH
def test_lexicon_has_no_phrase_with_two_meanings(g):
    phrases = [(tuple(words), m) for rows in g.lexicon.values() for words, m in rows]
    assert len({words for words, _ in phrases}) == len(phrases)
    for words, mention in phrases:
        assert g.find_mentions(list(words)) == ([mention], [])
        parts = {words[i:j] for i, j in itertools.combinations(range(len(words) + 1), 2)} - {words}
        assert not parts & {other for other, _ in phrases}
    assert not set(grammar.FILLERS) & g.summary_words
    nouns = {*g.words.persons, *g.words.objects}
    assert len(nouns) == len(g.words.persons) + len(g.words.objects)
    assert not nouns & {word for words, m in phrases if m.slot not in grammar.NOUNS for word in words}


def surface_forms(g, slot):
    if slot in grammar.NOUNS:
        return [(noun, grammar.Mention(slot, noun, 0)) for noun in g.concepts(slot)]
    concepts = g.synonyms[slot].items()
    return [(p, grammar.Mention(slot, name, i)) for name, c in concepts for i, p in enumerate(c)]


@EACH
def test_a_sentence_holds_its_phrases_and_no_other(g):
    """Nothing arises from the words of a template, or where two phrases meet."""
    templates = [*grammar.EVENTS, *grammar.FEELINGS, *grammar.ACTIONS, *(t for _, t in g.words.distractors)]
    for template in templates:
        slots = re.findall(r"{(\w+)}", template)
        first = {slot: surface_forms(g, slot)[0] for slot in slots}
        for pair in {(a, b) for a, b in itertools.pairwise(slots)} or {(slots[0],)}:
            for forms in itertools.product(*(surface_forms(g, slot) for slot in pair)):
                said = first | dict(zip(pair, forms, strict=True))
                text = template.format(**{slot: form[0] for slot, form in said.items()})
                mentions, _ = g.find_mentions(re.findall("[a-z]+", text))
                assert mentions == [said[slot][1] for slot in slots], text


def test_v2_is_about_twice_as_large():
    sizes = {slot: len(concepts) for slot, concepts in words_lib.V2.concepts.items()}
    assert sizes == dict(verb=20, place=16, time=12, feeling=16, action=16)
    assert len(words_lib.V2.persons) == len(words_lib.V2.objects) == 20


@EACH
def test_defects_of_demonstrations_have_their_rates(g):
    rng = random.Random(1)
    posts = [g.make_post(rng) for _ in range(4000)]
    defects = [g.make_demonstration(rng, post)[1] for post in posts]
    for part in grammar.DROPPABLE:
        share = np.mean([f"no {part}" in d for d in defects])
        assert abs(share - g.rates.drop) < 0.03
    assert abs(np.mean(["wrong entity" in d for d in defects]) - g.rates.wrong) < 0.02
