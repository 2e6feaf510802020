"""The words of the miniature's posts: nouns, synonyms and sentences, for mini_tldr and for mini_tldr_v2."""

from __future__ import annotations

from typing import NamedTuple

Triple = tuple[str, str, str]
Distractor = tuple[tuple[str, ...], str]  # the slots that a sentence names, and the sentence


class Words(NamedTuple):
    """Nouns, synonyms and distracting sentences of one task.

    Attributes:
        persons, objects: nouns.
        concepts: slot -> concepts, each a triple of synonyms; a concept is named by its first synonym.
        distractors: sentences that name other things than those of the event. None holds a verb or a time of
            the lexicon, and one that holds a feeling or an action names a person: that distinguishes it from
            the writer's own sentences (see `Grammar.read_post`).
    """

    persons: tuple[str, ...]
    objects: tuple[str, ...]
    concepts: dict[str, tuple[Triple, ...]]
    distractors: tuple[Distractor, ...]


# Free of any concept: a summary may open and ask in any of three ways.
GLOBALS = {"opener": ("so", "basically", "in short"), "ask": ("should i", "do i", "ok to")}
FRAME_WORDS = ("my", "feeling")
FILLERS = ("like", "really", "well", "anyway", "honestly")

EVENTS = (
    " {who} {verb} {object} {place} {time}.",
    " {time} {who} {verb} {object} {place}.",
    " {place}, {who} {verb} {object} {time}.",
    " {who} {verb} {object}. it happened {place} {time}.",
    " {time}, {place}, {who} {verb} {object}.",
    " {who} {verb} {object} {place}. it was {time}.",
)
FEELINGS = (
    " i feel {feeling} about it.",
    " now i am {feeling}.",
    " it made me {feeling}.",
    " to be honest i am {feeling} about this.",
)
ACTIONS = (
    " not sure if i should {action}.",
    " part of me wants to {action}.",
    " some people told me to {action}.",
    " maybe it is time to {action}.",
)

V1 = Words(
    persons=("boss", "sister", "brother", "friend", "cousin", "teacher",
             "roommate", "aunt", "uncle", "landlord", "coach", "neighbor"),
    objects=("bike", "laptop", "guitar", "camera", "watch", "jacket",
             "ring", "lamp", "couch", "tablet", "car", "book"),
    concepts={
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
    },
    distractors=(
        (("who", "object"), " {who} also has a {object} but that is another story."),
        (("who", "object"), " {who} wants a {object} of that kind too."),
        (("who", "place"), " {who} was {place} and did not see any of it."),
        (("who", "place"), " {who} is {place} a lot these days."),
        (("object", "place"), " i still keep a {object} {place}, which is fine."),
        (("object", "place"), " there is also a {object} {place} for us all."),
    ),
)  # fmt: skip

_MORE_CONCEPTS: dict[str, tuple[Triple, ...]] = {
    "verb": (
        ("found", "located", "discovered"),
        ("scratched", "scraped", "scuffed"),
        ("soaked", "drenched", "flooded"),
        ("inspected", "examined", "checked"),
        ("filmed", "recorded", "taped"),
        ("rented", "leased", "hired"),
        ("moved", "shifted", "relocated"),
        ("ignored", "neglected", "overlooked"),
        ("praised", "admired", "lauded"),
        ("mocked", "ridiculed", "derided"),
    ),
    "place": (
        ("at the hospital", "at the clinic", "in the ward"),
        ("at church", "in the chapel", "at mass"),
        ("at the airport", "in the terminal", "by the runway"),
        ("in the basement", "in the cellar", "downstairs"),
        ("in the attic", "under the roof", "upstairs"),
        ("at the diner", "in a restaurant", "at a cafe"),
        ("in the woods", "in the forest", "among the trees"),
        ("on the boat", "aboard ship", "on deck"),
    ),
    "time": (
        ("last year", "a year ago", "months ago"),
        ("tonight", "this evening", "at dusk"),
        ("just now", "a minute ago", "moments ago"),
        ("last weekend", "on the weekend", "over the weekend"),
        ("last summer", "in the summer", "over the summer"),
        ("this afternoon", "after lunch", "in the afternoon"),
    ),
    "feeling": (
        ("lonely", "isolated", "forsaken"),
        ("surprised", "shocked", "stunned"),
        ("embarrassed", "humiliated", "mortified"),
        ("hopeful", "optimistic", "upbeat"),
        ("nervous", "anxious", "uneasy"),
        ("curious", "intrigued", "interested"),
        ("grateful", "thankful", "obliged"),
        ("disgusted", "repulsed", "revolted"),
    ),
    "action": (
        ("get advice", "seek counsel", "ask an expert"),
        ("replace it", "buy a new one", "find another"),
        ("confess", "come clean", "admit everything"),
        ("keep quiet", "stay silent", "say nothing"),
        ("take revenge", "get even", "strike back"),
        ("celebrate", "rejoice", "have a feast"),
        ("quit", "resign", "step down"),
        ("take notes", "write it down", "document it"),
    ),
}

# The lexicon of V1 and as much again; the distracting sentences tell of others' feelings and plans too.
V2 = Words(
    persons=(*V1.persons, "mother", "father", "nephew", "niece", "doctor", "plumber", "barber", "tailor"),
    objects=(*V1.objects, "phone", "wallet", "violin", "kettle", "mirror", "carpet", "helmet", "drone"),
    concepts={slot: concepts + _MORE_CONCEPTS[slot] for slot, concepts in V1.concepts.items()},
    distractors=(
        *V1.distractors,
        (("who", "object", "place"), " {who} likes to have a {object} {place}, as far as i can tell."),
        (("object", "place"), " you can see a {object} {place} in the picture on the wall here."),
        (("who", "feeling"), " {who} seems {feeling} about other things, but not about this one."),
        (("who", "feeling"), " {who} was {feeling} and would never tell any of us the reason."),
        (("who", "object", "feeling"), " {who} gets {feeling} over any {object} that is not brand new."),
        (("who", "place", "feeling"), " {who} is always {feeling} {place}, but nobody knows why."),
        (("who", "action"), " {who} would {action} in my shoes, or that is the plan."),
        (("who", "action"), " {who} thinks that everyone should {action} once in a while."),
    ),
)
