"""The sample sheet: one JPEG with randomly drawn products, their questions and answers, to look at before trusting a dataset.

>>> sample_sheet({"train": rows, "val": [], "test": more}, image_root)[:3]
b'\\xff\\xd8\\xff'
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_prep.images.decode import ImageProblem
from data_prep.images.validate import open_image
from data_prep.records import Example

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_COLUMNS, _ROWS = 4, 4
_CELL = (340, 330)  # width and height of a product's cell; all lengths are in pixels
_IMAGE = 190  # largest height of a product's image
_LINE = 19  # height of a line of text
_INK, _FAINT, _ACCENT = (34, 34, 38), (120, 120, 128), (18, 94, 150)


def sample_sheet(splits: Mapping[str, Sequence[Example]], image_root: Path) -> bytes:
    """A JPEG of up to sixteen products from all splits; always the same ones for the same dataset.

    If an image can no longer be read, the reason stands in its place.
    """
    by_item: dict[str, list[tuple[str, Example]]] = {}
    for name, rows in splits.items():
        for row in rows:
            by_item.setdefault(row.item_id, []).append((name, row))
    # By hash: random, but reproducible.
    chosen = sorted(by_item, key=lambda item: hashlib.sha256(item.encode()).digest())[: _COLUMNS * _ROWS]
    rows_needed = max(1, -(-len(chosen) // _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], rows_needed * _CELL[1]), "white")
    pen = ImageDraw.Draw(sheet)
    text, small = ImageFont.load_default(13), ImageFont.load_default(11)
    for place, item in enumerate(chosen):
        left, top = place % _COLUMNS * _CELL[0], place // _COLUMNS * _CELL[1]
        split, first = by_item[item][0]
        pen.rectangle((left + 4, top + 4, left + _CELL[0] - 5, top + _CELL[1] - 5), outline=(224, 224, 228))
        try:
            image = open_image(image_root, first.image_path, first.image_id)
            image.thumbnail((_CELL[0] - 24, _IMAGE), Image.Resampling.LANCZOS)
            sheet.paste(image, (left + (_CELL[0] - image.width) // 2, top + 12))
        except ImageProblem as problem:
            pen.text((left + 14, top + 80), problem.reason, _FAINT, small)
        line = top + _IMAGE + 18
        pen.text((left + 14, line), _fit(f"{item} · {first.product_type} · {split}", pen, small, ""), _FAINT, small)
        for _, example in by_item[item][:5]:
            line += _LINE
            answer = f"  {example.answer}"
            question = _fit(example.question, pen, text, answer)
            pen.text((left + 14, line), question, _INK, text)
            pen.text((left + 14 + pen.textlength(question, text), line), answer, _ACCENT, text)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _fit(text: str, pen: ImageDraw.ImageDraw, font: Font, after: str) -> str:
    """Shorten the text so that it and the text after it fit into a cell."""
    room = _CELL[0] - 28
    if pen.textlength(text + after, font) <= room:
        return text
    while text and pen.textlength(text + "…" + after, font) > room:
        text = text[:-1]
    return text + "…"
