"""What a tiny model is taught before it meets a catalogue: drawn things with questions about them, answered in generic words.

::

    folder/00017.png
    Example(image_path="00017.png", question="How many mugs are shown?", answer="two", ...)
    Example(image_path="00017.png", question="What color is the cup?", answer="red", ...)

Things come from the same drawer as the demo's products, but from random numbers of their own: no image of a catalogue is
among them, whatever its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from data_prep.curate.question_text import question_type
from data_prep.demo.drawing import draw, random_look
from data_prep.demo.questions import lessons
from data_prep.records import Example


def render_lessons(
    folder: Path, *, images: int, size: int, seed: int = 0, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[Example]:
    """Draw images into a folder, and ask about each.

    Args:
        folder: made if it is not there.
        images: how many.
        size: their side, in pixels.
        seed: another seed is other images.
        progress: called with images done and images in all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number in range(images):
        rng = random.Random(f"lesson {seed}:{number}")  # a catalogue's begin otherwise
        look = random_look(rng)
        name = f"{number:05d}.png"
        draw(look, size).save(folder / name)
        for place, pair in enumerate(lessons(look, rng)):
            examples.append(
                Example(
                    id=f"{number}-{place}",
                    item_id=str(number),
                    image_id=str(number),
                    image_path=name,
                    question=pair.question,
                    answer=pair.answer,
                    category=pair.category,
                    question_type=question_type(pair.question, pair.answer),
                    product_type="",
                )
            )
        progress(number + 1, images)
    return examples
