"""The data of the page's answer browser. It may hold 2 x 50,000 questions, so words and questions stand in it once::

{"questions": {"id": ["5545"], "text": ["What color?"], "truth": [0], "path": [0], "product": [0], "qtype": [0], ...},
 "models": [{"name": "blip", "rows": [0], "variants": [{"name": "base", "label": "base", "right": "0", "answers": [1],
 "confidence": [0.41]}]}],
 "words": {"answer": ["red", "blue"], "plain": ["red", "blue"], "path": ["ab/1.jpg"], "product": ["B0…"], "qtype": ["color"],
 ...}, "thumbnails": {...}, "prefix": "../images/"}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
from markupsafe import Markup

from data_prep.normalize import normalize
from data_prep.records import Opinions
from vqa.report.figures import UNKNOWN, Table

LABELS = {"base": "base", "lora": "fine-tuned", "blind": "blind floor", "swap": "other image", "grey": "gray image"}


@dataclass(frozen=True, slots=True)
class BrowserVariant:
    """The answers of one variant, in the order of the model's rows."""

    name: str
    label: str
    answers: list[int]  # numbers of `words["answer"]`
    right: str  # a character per question, "1" or "0"
    confidence: list[float | None] | None  # None where no answer has one


@dataclass(frozen=True, slots=True)
class BrowserModel:
    """The questions of one model, and what its variants answered."""

    name: str
    rows: list[int]  # numbers of its questions
    variants: list[BrowserVariant]


@dataclass(frozen=True, slots=True)
class BrowserData:
    """What report.js reads."""

    questions: dict[str, list[str] | list[int]]  # "id", "text"; "truth", "path", "product", … are numbers of `words`
    models: list[BrowserModel]
    words: dict[str, list[str]]  # by number; "plain" has the normalized "answer"
    thumbnails: Mapping[str, str]  # path → data URI
    prefix: str  # leads from the page to the image folder; "" without one


OPINIONS = ("seen", "blind", "witness")  # fields of `Opinions` by which questions can be chosen
_NO_OPINION = ("unchecked", "silent")


def browser_data(
    tables: Mapping[str, Table], opinions: Mapping[str, Opinions], thumbnails: Mapping[str, str], prefix: str
) -> BrowserData:
    """Collect the questions and answers of all models, and others' opinions of the questions by their id."""
    kinds = ("answer", "path", "product", "qtype", "category", "ptype", *OPINIONS)
    numbers: dict[str, dict[str, int]] = {kind: {} for kind in kinds}

    def number(kind: str, word: str) -> int:
        return numbers[kind].setdefault(word, len(numbers[kind]))

    examples = {(e.id, e.question): e for table in tables.values() for e in table.examples}
    place = {key: i for i, key in enumerate(examples)}
    every = list(examples.values())
    questions: dict[str, list[str] | list[int]] = {
        "id": [e.id for e in every],
        "text": [e.question for e in every],
        "truth": [number("answer", e.answer) for e in every],
        "path": [number("path", e.image_path) for e in every],
        "product": [number("product", e.item_id) for e in every],
        "qtype": [number("qtype", e.question_type) for e in every],
        "category": [number("category", e.category) for e in every],
        "ptype": [number("ptype", e.product_type) for e in every],
    }
    for name in OPINIONS:
        said = (getattr(opinions.get(e.id, UNKNOWN), name) for e in every)
        questions[name] = [number(name, "" if opinion in _NO_OPINION else opinion) for opinion in said]
    models = [
        BrowserModel(
            name=name,
            rows=[place[e.id, e.question] for e in table.examples],
            variants=[
                _variant(table, variant, [number("answer", p.answer) for p in predictions])
                for variant, predictions in table.answers.items()
            ],
        )
        for name, table in tables.items()
    ]
    words = {kind: list(known) for kind, known in numbers.items()}
    words["plain"] = [normalize(word) for word in words["answer"]]
    return BrowserData(questions, models, words, thumbnails, prefix)


def _variant(table: Table, name: str, answers: list[int]) -> BrowserVariant:
    # Rounded down: an answer stays in its bin of the reliability diagram, whose bounds are tenths.
    confidence = [None if p.confidence is None else math.floor(1000 * p.confidence) / 1000 for p in table.answers[name]]
    return BrowserVariant(
        name=name,
        label=LABELS.get(name, name),
        answers=answers,
        right="".join("1" if right else "0" for right in table.right(name)),
        confidence=confidence if any(c is not None for c in confidence) else None,
    )


def link(model: str, **filters: str) -> str:
    """An address on the page that shows some of a model's answers; report.js reads it."""
    return "#browser?" + urlencode({k: v for k, v in {"model": model, **filters}.items() if v}, errors="replace")


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: it has no character that could end the element or start a comment."""
    text = orjson.dumps(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
