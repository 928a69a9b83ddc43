"""The catalogue as a witness: where the listing itself states what a question asks for, does it say the same as the answer?

>>> ask("What is the main color of the shoe?", "brown", product)     # its listing says "cognac", which no prompt shows
Testimony(verdict='agrees', field='color', says='cognac', why='')

Only questions about the whole product are put to it: "What color are the laces?" asks about something that the listing does not
describe. A listing may be wrong, or describe another variant of the product, so the witness decides nothing by itself.

The rules, in this order; the first that applies makes the witness silent:

================  ==============================================================================================================
no_field          the question asks for no field, or for more than the field ("the darker color", "the second material")
not_the_whole     it asks about a part: a head of `parts` in witness.yaml (unless the product's type has it), "on the ...", one
                  thing "of" another, or a word that neither the product's type nor its name has
nothing_stated    the listing has no such field
not_understood    listing or answer has no word of the field's table: a trade name, a number; or the listing says only that
                  there are several colors, which contradicts no main color
================  ==============================================================================================================
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import yaml

from data_prep.curate.question_text import singular, words_of
from data_prep.records import Product
from data_prep.verify.equivalents import canonical

TABLE_FILE = Path(__file__).parent / "witness.yaml"
FIELDS = ("color", "material", "pattern", "shape")

Verdict = Literal["agrees", "differs", "silent"]


@dataclass(frozen=True, slots=True)
class Testimony:
    """What the listing says about one answer."""

    verdict: Verdict
    field: str = ""  # of the listing; "" where the question asks for none
    says: str = ""  # the field's value
    why: str = ""  # it is silent: no_field, not_the_whole, nothing_stated, not_understood


_FIELD_WORD = r"(?P<field>colou?r|material|pattern|shape)"
_MAIN = r"(?:(?:main|primary|overall|dominant|predominant|general|visible|apparent) )*"
_ABOUT = r"(?P<about>.+)"
# The forms in which a question asks for exactly one field of exactly one thing. In lower-case words without punctuation.
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"what (?:is|are) the {_MAIN}{_FIELD_WORD} (?:of|used for|shown on|visible on) {_ABOUT}",
        rf"what (?:is|are) {_ABOUT}'s {_MAIN}{_FIELD_WORD}",
        rf"(?:what|which) {_MAIN}{_FIELD_WORD} (?:is|are) (?P<about>.+?)(?: (?:mainly |primarily )?made (?:of|from))?",
        rf"(?:what|which) {_MAIN}{_FIELD_WORD} (?:does|do) {_ABOUT} have",
        r"what (?:is|are) (?P<about>.+?) (?:mainly |primarily |mostly )?made (?:of|from|out of)",
        rf"what (?:is|are) the {_MAIN}(?P<noun>\w+)(?: \w+)? {_FIELD_WORD}",
    )
)
_TAIL = re.compile(r" (?:in (?:the|this) (?:image|picture|photo)|shown|visible|pictured)$")
_ARTICLES = re.compile(r"^(?:the|this|a|an|these|those|its|main|whole|entire) ")
_SEVERAL = "multicolor"
_GENERAL = frozenset({"product", "item", "object", "set", "it"})


def ask(question: str, answer: str, product: Product) -> Testimony:
    """Ask the listing."""
    field, about = _asked(question)
    if not field:
        return Testimony("silent", why="no_field")
    if not _is_whole(about, product):
        return Testimony("silent", field, why="not_the_whole")
    says = cast(str, getattr(product, field))
    if not says:
        return Testimony("silent", field, why="nothing_stated")
    stated, given = _meanings(field, says), _meanings(field, answer)
    if canonical(answer) in {canonical(word) for word in words_of(says)}:
        return Testimony("agrees", field, says)
    if not given or not stated - {_SEVERAL}:
        return Testimony("silent", field, says, "not_understood")
    return Testimony("agrees" if stated & given else "differs", field, says)


def _asked(question: str) -> tuple[str, str]:
    """The field that a question asks for, and of what; ("", "") where it asks for none, or not for exactly that."""
    text = " ".join(words_of(question))
    while (shorter := _TAIL.sub("", text)) != text:
        text = shorter
    for form in _FORMS:
        if found := form.fullmatch(text):
            groups = found.groupdict()
            field = (groups.get("field") or "material").replace("colour", "color")
            about = groups.get("about") or groups.get("noun") or ""
            while (shorter := _ARTICLES.sub("", about)) != about:
                about = shorter
            return field, about
    return "", ""


def _is_whole(about: str, product: Product) -> bool:
    """Whether a noun phrase means the product itself: no part, nothing of or on something else, and a word of the listing."""
    words = about.split()
    if not words or set(words) & {
        "of",
        "on",
        "in",
        "with",
        "at",
        "around",
        "under",
        "inside",
        "and",
        "between",
        "next",
        "from",
        "by",
    }:
        return False
    if any(word.endswith("'s") for word in words):
        return False
    head = canonical(words[-1])
    if head in _GENERAL:
        return True
    kind, name = (
        set(map(canonical, words_of(text.replace("_", " ")))) for text in (product.product_type, product.name)
    )
    if head in _parts():
        return head in kind  # a headboard is a part of a bed, unless headboards are what is sold
    return any(head == word or (len(head) > 3 and word.endswith(head)) for word in kind | name)


@functools.cache
def _parts() -> frozenset[str]:
    return frozenset(map(canonical, _table()["parts"]))


def _meanings(field: str, text: str) -> frozenset[str]:
    """The general words of a field's table that cover a text's words."""
    covers = _covering(field)
    return frozenset().union(*(covers.get(singular(word), frozenset()) for word in words_of(text.replace("-", " "))))


@functools.cache
def _covering(field: str) -> dict[str, frozenset[str]]:
    """Word → the general words of the field that cover it, itself included."""
    found: dict[str, set[str]] = defaultdict(set)
    for general, words in _table()[field].items():
        for word in (general, *words):
            found[singular(word)].add(general)
    return {word: frozenset(general) for word, general in found.items()}


@functools.cache
def _table() -> dict[str, dict[str, list[str]]]:
    return cast(dict[str, dict[str, list[str]]], yaml.safe_load(TABLE_FILE.read_text(encoding="utf-8")))
