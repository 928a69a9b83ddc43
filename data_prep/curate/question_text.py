"""The text of a question: what it asks about, whether two ask the same, whether it is one at all.

>>> question_type("What color is the mug?", "red")
'color'
>>> similarity("What is the main color of the mug", "Which colour does the mug have?")
1.0

The normalization, in full: answers are stripped, lower-cased, and respelt only where the configuration says so. Questions
keep their wording; blanks are collapsed, and a question mark is not required. For comparing two questions only, case,
punctuation, the words of `_EMPTY_WORDS` and plural endings are ignored, and colour counts as color.
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

# In this order: the first that matches names the type. Each is looked for in the normalized words of the question.
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
    """What is asked about: ``yes/no``, one of `_TYPES`, or ``other``. A yes or no settles it, whatever it is about."""
    if answer in ("yes", "no"):
        return "yes/no"
    text = " ".join(words_of(question))
    return next((name for name, pattern in _TYPES if pattern.search(text)), "other")


def asks_something(question: str) -> bool:
    """Whether it has the form of a question: an asking word, and something asked about; the question mark may be missing."""
    words = words_of(question)
    if len(words) < 3:
        return False
    # "Besides the strap, what ..."; a verb asks only where it comes first
    return words[0] in _ASKING or any(word in _ASKING - _VERBS for word in words) or question.rstrip().endswith("?")


def gives_answer_away(question: str, answer: str) -> bool:
    """Whether the answer stands in the question. A choice ("Is it round or square?") has to name it, a yes or no may."""
    if answer in ("yes", "no"):
        return False
    words = words_of(question)
    return "or" not in words and _singular(answer) in {_singular(word.removesuffix("'s")) for word in words}


@lru_cache(maxsize=65_536)
def content_words(question: str) -> frozenset[str]:
    """The words that carry the question's meaning, for comparing two."""
    found = []
    for word in words_of(question):
        if word not in _EMPTY_WORDS:
            found.append(_singular(word.removesuffix("'s").replace("colour", "color")))
    return frozenset(found)


def similarity(one: str, other: str) -> float:
    """Shared part of the two questions' content words: Jaccard's index, 0 to 1; 0 where a count meets no count."""
    a, b = content_words(one), content_words(other)
    if ("many" in a) != ("many" in b):
        return 0.0
    return len(a & b) / len(a | b) if a or b else 1.0


def question_pattern(question: str) -> str:
    """The question without its subject, as a reader who cannot see the image may use it: ``what color``, ``how many``."""
    words = [word.replace("colour", "color") for word in words_of(question)]
    skipped = {"the", "a", "an", "this", "main", "primary", "of"}
    return " ".join([word for word in words if word not in skipped][:3])


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(_NOT_PLURAL) else word
