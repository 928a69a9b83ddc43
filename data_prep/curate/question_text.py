"""Rules on the text of a question: whether it is one, what it asks about, whether two ask the same.

>>> question_type("What color is the mug?", "red")
'color'
>>> similarity("What is the main color of the mug", "Which colour does the mug have?")
1.0

All normalization there is: answers are stripped, lower-cased, and respelled only if the configuration says so. Questions keep
their wording; repeated blanks are collapsed, and a question mark is not required. Only when two questions are compared, case,
punctuation, the words of `_EMPTY_WORDS` and plural endings are ignored, and "colour" equals "color". Questions that begin
differently (whether, where, how many, what) never ask the same.
"""

from __future__ import annotations

import re
from functools import lru_cache

# ruff: noqa: SIM905 - lists of words are easier to read as text
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_EMPTY_WORDS = frozenset(
    "a an the this that these those is are was were be do does did has have had can could of in on at to for with by from "
    "what which how who where there it its their main primary dominant overall predominant visible shown seen product item "
    "image picture photo please tell me used".split()
)
_ASKING = frozenset(
    "what which how who whom whose where when why is are was were do does did has have had can could will would should".split()
)
_VERBS = frozenset("is are was were do does did has have had can could will would should".split())
_NOT_PLURAL = ("ss", "us", "is")

# The first pattern that matches names the type, so the order matters: "What color is the print?" asks about a color.
# Patterns are searched for in the question's lower-case words without punctuation.
_TYPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(rf"\b(?:{words})\b"))
    for name, words in (
        ("count", r"how many|number of|count|quantity"),
        ("color", r"colou?rs?|colou?red|hue|shade of|tone"),
        ("text", r"text|word|words|letters?|written|printed on|says?|logo says|number is|digits?|label read|reads?"),
        ("brand", r"brand|brand's|logo|manufacturer|company"),
        ("material", r"materials?|made of|made from|made out|fabric|metal|leather|wood type|texture|gemstone|stone|textile"),
        ("pattern", r"patterns?|patterned|print|prints|motif|decorated|design on"),
        ("shape", r"shapes?|shaped|silhouette|form"),
        ("size", r"size|large|long|tall|wide|length|height|width|thick|capacity|sized"),
        ("function", r"used for|purpose|function|functions|use of|intended|hold|holds|designed to|meant|power|activity"),
        ("part", r"closure|fastening|fastener|neckline|collar|heel|toe|sleeves?|handle type|strap|finish|clasp"),
        ("style", r"style|styled|fashion|theme|aesthetic|occasion|design|setting|room|season|look"),
        ("position", r"where|position|located|location|side|direction|orientation|angle|facing"),
        ("object", r"what (?:type|kind|sort)|type of|kind of|what is (?:this|it|the (?:product|item|object))|what (?:product|item|object)|which (?:product|item|object)|category|animal|plant|fruit|food"),
    )
)  # fmt: skip


def words_of(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return _WORD.findall(text.lower())


def question_type(question: str, answer: str) -> str:
    """What is asked about: ``yes/no`` if that is the answer, else one of `_TYPES` or ``other``."""
    if answer in ("yes", "no"):
        return "yes/no"
    text = " ".join(words_of(question))
    return next((name for name, pattern in _TYPES if pattern.search(text)), "other")


def asks_something(question: str) -> bool:
    """Whether the text has the form of a question: three words or more, with a question word or a question mark."""
    words = words_of(question)
    if len(words) < 3:
        return False
    # A question word may come later ("Besides the strap, what is blue"); a verb asks only if it comes first.
    return words[0] in _ASKING or any(word in _ASKING - _VERBS for word in words) or question.rstrip().endswith("?")


def gives_answer_away(question: str, answer: str) -> bool:
    """Whether the question contains its answer. A choice ("Is it round or square?") must, and yes or no may."""
    if answer in ("yes", "no"):
        return False
    words = words_of(question)
    return "or" not in words and singular(answer) in {singular(word.removesuffix("'s")) for word in words}


@lru_cache(maxsize=65_536)
def content_words(question: str) -> frozenset[str]:
    """The words that carry the question's meaning, normalized for comparison."""
    meaningful = (word for word in words_of(question) if word not in _EMPTY_WORDS)
    return frozenset(singular(word.removesuffix("'s").replace("colour", "color")) for word in meaningful)


def similarity(one: str, other: str) -> float:
    """Jaccard index of the two questions' content words, 0 to 1; 0 if their words of asking differ: "Where is the logo" is
    neither "What is the logo" nor "Is there a logo"."""
    if _asked_for(one) != _asked_for(other):
        return 0.0
    a, b = content_words(one), content_words(other)
    return len(a & b) / len(a | b) if a or b else 1.0


@lru_cache(maxsize=65_536)
def _asked_for(question: str) -> str:
    """What kind of answer is asked for: ``whether``, ``where``, ``how many``, ``what``, ..."""
    words = words_of(question)
    if words and words[0] in _VERBS:
        return "whether"
    place = next((place for place, word in enumerate(words) if word in _ASKING - _VERBS), None)
    if place is None:
        return "what"  # "Name the color of the mug"
    if words[place] == "how" and words[place + 1 : place + 2] in (["many"], ["much"]):
        return "how many"
    return {"which": "what", "whom": "who"}.get(words[place], words[place])


def question_pattern(question: str) -> str:
    """The first three words without articles and the like: ``what color mug``. What a blind guesser goes by."""
    words = [word.replace("colour", "color") for word in words_of(question)]
    skipped = {"the", "a", "an", "this", "main", "primary", "of"}
    return " ".join([word for word in words if word not in skipped][:3])


def singular(word: str) -> str:
    """A word without the s of a plural; short words, and those in -ss, -us or -is, stay."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(_NOT_PLURAL) else word
