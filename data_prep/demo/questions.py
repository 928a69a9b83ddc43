"""Questions about a made-up product whose answers can be seen in its image, in several wordings each.

>>> questions(look, rng)[0]
{'question': 'What color is the mug?', 'answer': 'red', 'category': 'easy'}
"""

from __future__ import annotations

import random

from data_prep.demo.drawing import COLORS, PATTERNS, SHAPES, Look

TYPE = (
    "What type of product is this?",
    "What kind of item is shown?",
    "What product is in the image?",
    "Which object is this?",
)
COLOR = (
    "What color is the {noun}?",
    "What is the main color of the {noun}?",
    "Which color does the {noun} have?",
    "What is the color of this {noun}?",
)
PATTERN = (
    "What pattern is on the {noun}?",
    "Which pattern does the {noun} have?",
    "What is the pattern of the {noun}?",
    "How is the surface of the {noun} decorated?",
)
COUNT = (
    "How many {noun}s are there?",
    "How many {noun}s are shown?",
    "How many pieces are in this set?",
    "What is the number of {noun}s?",
)
SHAPE = (
    "What shape is the {noun}?",
    "What is the shape of the {noun}?",
    "Which shape does the {noun} have?",
)
IS_COLOR = ("Is the {noun} {color}?", "Does the {noun} look {color}?")
IS_PATTERN = ("Is the {noun} {pattern}?", "Does the {noun} look {pattern}?")


def questions(look: Look, rng: random.Random) -> list[dict[str, str]]:
    """Five pairs in random order: type, color, pattern, count, and shape or a question to answer by yes or no."""

    def ask(wordings: tuple[str, ...], answer: str, category: str, **words: str) -> dict[str, str]:
        return {
            "question": rng.choice(wordings).format(noun=look.noun, **words),
            "answer": answer,
            "category": category,
        }

    pairs = [
        ask(TYPE, look.noun, "easy"),
        ask(COLOR, look.color, "easy"),
        ask(PATTERN, look.pattern, "medium"),
        ask(COUNT, look.count, "medium"),
    ]
    if look.noun in SHAPES:
        pairs.append(ask(SHAPE, look.shape, "hard"))
    else:
        # Half of these are true, so that "yes" is no better a guess than "no".
        true = rng.random() < 0.5
        if rng.random() < 0.5:
            color = look.color if true else rng.choice([c for c in COLORS if c != look.color])
            pairs.append(ask(IS_COLOR, "yes" if true else "no", "hard", color=color))
        else:
            pattern = look.pattern if true else rng.choice([p for p in PATTERNS if p != look.pattern])
            pairs.append(ask(IS_PATTERN, "yes" if true else "no", "hard", pattern=pattern))
    rng.shuffle(pairs)
    return pairs
