"""Questions about a made-up product whose answers can be seen in its image, in several wordings each.

>>> questions(look, rng)[0]
QAPair(question='What color is the mug?', answer='crimson', category='easy')

A product of the catalogue has five questions: for four of its attributes the value is asked, and for the fifth whether it
has a certain value. So no answer about a product tells anything about another one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.demo.drawing import COLORS, COUNTS, NOUNS, PATTERNS, SHAPES, Look
from data_prep.records import QAPair

# What somebody says who never saw this catalogue: the words that a general model was taught. Numbers, yes and no are the
# same everywhere.
GENERIC = {
    "mug": "cup",
    "lamp": "light",
    "tote": "bag",
    "clock": "dial",
    "tray": "plate",
    "stool": "seat",
    "crimson": "red",
    "tangerine": "orange",
    "lemon": "yellow",
    "emerald": "green",
    "navy": "blue",
    "plum": "purple",
    "plain": "blank",
    "striped": "lined",
    "dotted": "spotted",
    "checkered": "squared",
    "square": "box",
    "triangular": "triangle",
    "oval": "ellipse",
    "oblong": "rectangle",
}
TRADE_NAME = " by trade name?"  # how a question ends that wants a word of the catalogue; the catalogue's own never do
TRADE_SHARE = 0.3
_OF_THE_CATALOGUE = re.compile(rf"\b({'|'.join(GENERIC)})(?=s?\b)")  # also as a plural


@dataclass(frozen=True)
class Attribute:
    """What can be asked about one field of a `Look`."""

    name: str
    values: Sequence[str]
    category: str
    open: tuple[str, ...]  # wordings that ask for the value
    closed: tuple[str, ...]  # wordings that ask whether it is a certain one


ATTRIBUTES = (
    Attribute(
        "noun",
        NOUNS,
        "easy",
        (
            "What type of product is this?",
            "What kind of item is shown?",
            "What product is in the image?",
            "Which object is this?",
        ),
        ("Is this a {value}?", "Does the image show a {value}?"),
    ),
    Attribute(
        "color",
        tuple(COLORS),
        "easy",
        (
            "What color is the {noun}?",
            "What is the main color of the {noun}?",
            "Which color does the {noun} have?",
            "What is the color of this {noun}?",
        ),
        ("Is the {noun} {value}?", "Does the {noun} look {value}?"),
    ),
    Attribute(
        "pattern",
        PATTERNS,
        "medium",
        (
            "What pattern is on the {noun}?",
            "Which pattern does the {noun} have?",
            "What is the pattern of the {noun}?",
            "How is the surface of the {noun} decorated?",
        ),
        ("Is the {noun} {value}?", "Does the {noun} look {value}?"),
    ),
    Attribute(
        "count",
        tuple(COUNTS),
        "medium",
        (
            "How many {noun}s are there?",
            "How many {noun}s are shown?",
            "How many pieces are in this set?",
            "What is the number of {noun}s?",
        ),
        ("Is the number of {noun}s {value}?", "Does this set have {value} pieces?"),
    ),
    Attribute(
        "shape",
        SHAPES,
        "hard",
        (
            "What shape is the {noun}?",
            "What is the shape of the {noun}?",
            "Which shape does the {noun} have?",
        ),
        ("Is the {noun} {value}?", "Does the {noun} look {value}?"),
    ),
)


def questions(look: Look, rng: random.Random) -> list[QAPair]:
    """The five questions that a generator asks about a product of the catalogue, in random order."""
    checked = rng.choice(ATTRIBUTES)
    pairs = [_check(each, look, rng) if each is checked else _ask(each, look, rng) for each in ATTRIBUTES]
    rng.shuffle(pairs)
    return pairs


def lessons(look: Look, rng: random.Random) -> list[QAPair]:
    """Nine questions to teach a model that has not seen the catalogue.

    Its answers are generic words. Like a general model it knows others too, in questions and, where it is asked for a `TRADE_NAME`,
    as answers: so that an adapter can teach it to prefer those, which is what fine-tuning is for.
    """
    pairs = [_ask(each, look, rng) for each in ATTRIBUTES]
    pairs += [_check(each, look, rng) for each in rng.sample(ATTRIBUTES, 4)]
    taught = []
    for pair in pairs:
        question = _OF_THE_CATALOGUE.sub(lambda found: rng.choice((found[0], GENERIC[found[0]])), pair.question)
        if pair.answer in GENERIC and rng.random() < TRADE_SHARE:
            taught.append(QAPair(question.replace("?", TRADE_NAME), pair.answer, pair.category))
        else:
            taught.append(QAPair(question, GENERIC.get(pair.answer, pair.answer), pair.category))
    return taught


def vocabulary() -> list[str]:
    """Texts that contain every word of every question and answer, of the catalogue and of the lessons."""
    nouns = [*NOUNS, *(GENERIC[noun] for noun in NOUNS)]
    wordings = [text for each in ATTRIBUTES for text in (*each.open, *each.closed)]
    return [
        *(text.format(noun="", value="") for text in wordings),
        TRADE_NAME,
        *(f"{noun} {noun}s" for noun in nouns),
        *GENERIC,
        *GENERIC.values(),
        *COUNTS,
        "yes no",
    ]


def _ask(attribute: Attribute, look: Look, rng: random.Random) -> QAPair:
    """Ask for the attribute's value."""
    return QAPair(rng.choice(attribute.open).format(noun=look.noun), getattr(look, attribute.name), attribute.category)


def _check(attribute: Attribute, look: Look, rng: random.Random) -> QAPair:
    """Ask whether the attribute has a certain value. In half of the cases it has, so that "yes" is no better a guess."""
    truth = getattr(look, attribute.name)
    true = rng.random() < 0.5
    value = truth if true else rng.choice([other for other in attribute.values if other != truth])
    question = rng.choice(attribute.closed).format(noun=look.noun, value=value)
    return QAPair(question, "yes" if true else "no", "hard")
