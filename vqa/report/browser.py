"""The data of the page's answer browser, compact: words once, right/wrong as a string of digits, answers by column.

``{"paths": ["ab/1.jpg"], "models": [{"name": "blip", "rows": [["What color?", "red", 0, 1, 0, 2]], "variants":
[{"name": "base", "right": "0", "answers": ["blue"], "confidence": [0.41]}]}]}``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from markupsafe import Markup

from vqa.report.figures import Table

LABELS = {"base": "base", "lora": "fine-tuned", "blind": "blind floor"}


class _Words:
    """Strings by number, in order of first use."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, word: str) -> int:
        return self.known.setdefault(word, len(self.known))


def browser_data(tables: Mapping[str, Table], thumbnails: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """What report.js reads."""
    paths = _Words()
    words = {"qtype": _Words(), "category": _Words(), "ptype": _Words()}
    models = []
    for name, table in tables.items():
        rows = [
            [
                e.question,
                e.answer,
                paths.number(e.image_path),
                words["qtype"].number(e.question_type),
                words["category"].number(e.category),
                words["ptype"].number(e.product_type),
            ]
            for e in table.examples
        ]
        variants = []
        for variant, predictions in table.answers.items():
            sure = [None if p.confidence is None else round(p.confidence, 3) for p in predictions]
            variants.append(
                {
                    "name": variant,
                    "label": LABELS.get(variant, variant),
                    "answers": [p.answer for p in predictions],
                    "right": "".join("1" if good else "0" for good in table.right(variant)),
                    "confidence": sure if any(c is not None for c in sure) else None,
                }
            )
        models.append({"name": name, "rows": rows, "variants": variants})
    return {
        "models": models,
        "paths": list(paths.known),
        "words": {key: list(table.known) for key, table in words.items()},
        "thumbnails": dict(thumbnails),
        "prefix": prefix,
    }


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no character that could end the element or start a comment."""
    text = orjson.dumps(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
