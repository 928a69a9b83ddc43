"""A rendered image with a question whose answer is known: does a model that is in training, or was just saved, answer at all?

It says nothing about quality; a shop's image looks different. A wrong answer is no error.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from data_prep.records import Example

_SIDE = 256  # pixels, as ABO's small images
_NAME = "red_circle.png"


def synthetic_example(folder: Path) -> Example:
    """A red circle on white, drawn into a folder; what color is it?"""
    path = folder / _NAME
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (_SIDE, _SIDE), "white")
        ImageDraw.Draw(image).ellipse((40, 40, _SIDE - 40, _SIDE - 40), "red")
        part = path.with_suffix(".part")
        image.save(part, "PNG")
        part.rename(path)
    return Example(
        id="synthetic",
        item_id="synthetic",
        image_id="synthetic",
        image_path=_NAME,
        question="What color is the circle?",
        answer="red",
        category="easy",
        question_type="color",
        product_type="",
    )
