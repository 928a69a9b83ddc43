"""The data of the page's answer browser, compact, since it may hold 50,000 questions::

{"models": [{"name": "blip", "rows": [["What color?", "red", 0, 1, 0, 2]], "variants":
[{"name": "base", "label": "base", "right": "0", "answers": ["blue"], "confidence": [0.41]}]}], "paths": ["ab/1.jpg"],
"words": {"qtype": ["", "color"], "category": ["easy"], "ptype": [...]}, "thumbnails": {...}, "prefix": "../images/"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from markupsafe import Markup

from vqa.report.figures import Table

LABELS = {"base": "base", "lora": "fine-tuned", "blind": "blind floor", "swap": "other image", "grey": "gray image"}


@dataclass(frozen=True, slots=True)
class BrowserVariant:
    """The answers of one variant, in the order of the model's rows."""

    name: str
    label: str
    answers: list[str]
    right: str  # a character per question, "1" or "0"
    confidence: list[float | None] | None  # None where no answer has one


@dataclass(frozen=True, slots=True)
class BrowserModel:
    """The questions of one model, and what its variants answered."""

    name: str
    rows: list[
        tuple[str, str, int, int, int, int]
    ]  # question, truth; numbers of path, question type, category, product type
    variants: list[BrowserVariant]


@dataclass(frozen=True, slots=True)
class BrowserData:
    """What report.js reads."""

    models: list[BrowserModel]
    paths: list[str]  # by the rows' numbers
    words: dict[str, list[str]]  # "qtype", "category", "ptype" → words by the rows' numbers
    thumbnails: Mapping[str, str]  # path → data URI
    prefix: str  # leads from the page to the image folder; "" without one


def browser_data(tables: Mapping[str, Table], thumbnails: Mapping[str, str], prefix: str) -> BrowserData:
    """Collect the questions and answers of all models."""
    numbers: dict[str, dict[str, int]] = {"path": {}, "qtype": {}, "category": {}, "ptype": {}}

    def number(kind: str, word: str) -> int:
        return numbers[kind].setdefault(word, len(numbers[kind]))

    models = [
        BrowserModel(
            name=name,
            rows=[
                (
                    e.question,
                    e.answer,
                    number("path", e.image_path),
                    number("qtype", e.question_type),
                    number("category", e.category),
                    number("ptype", e.product_type),
                )
                for e in table.examples
            ],
            variants=[_variant(table, variant) for variant in table.answers],
        )
        for name, table in tables.items()
    ]
    words = {kind: list(known) for kind, known in numbers.items()}
    return BrowserData(models, words.pop("path"), words, thumbnails, prefix)


def _variant(table: Table, name: str) -> BrowserVariant:
    predictions = table.answers[name]
    confidence = [None if p.confidence is None else round(p.confidence, 3) for p in predictions]
    return BrowserVariant(
        name=name,
        label=LABELS.get(name, name),
        answers=[p.answer for p in predictions],
        right="".join("1" if right else "0" for right in table.right(name)),
        confidence=confidence if any(c is not None for c in confidence) else None,
    )


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: it has no character that could end the element or start a comment."""
    text = orjson.dumps(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
