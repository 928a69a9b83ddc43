"""Made-up questions, answers and images for the tests of evaluation and report."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from data_prep.records import Answered, Example

ANSWERS = ("red", "blue", "green", "round", "square", "2", "wood")


def examples(products: int, questions: int = 5, seed: int = 0) -> list[Example]:
    """Questions with truths that a seed decides."""
    draw = random.Random(seed)
    return [
        Example(
            id=f"p{p}-{q}",
            item_id=f"p{p}",
            image_id=f"i{p}",
            image_path=f"{p % 7}/{p}.jpg",
            question=f"What is property {q} of item {p}?",
            answer=draw.choice(ANSWERS),
            category=("easy", "medium", "hard")[q % 3],
            question_type=("color", "shape", "count")[q % 3],
            product_type=("LAMP", "SHOES")[p % 2],
        )
        for p in range(products)
        for q in range(questions)
    ]


def predictions(rows: list[Example], right: float, seed: int = 1) -> list[Answered]:
    """Answers of which about a share ``right`` is right."""
    draw = random.Random(seed)
    return [
        Answered(
            e.id,
            e.item_id,
            e.image_id,
            e.question,
            e.answer,
            e.answer if draw.random() < right else draw.choice(ANSWERS),
            confidence=draw.random(),
            seconds=0.01,
        )
        for e in rows
    ]


def write_images(root: Path, rows: list[Example]) -> None:
    """A small image for every path that the rows name."""
    for path in {e.image_path for e in rows}:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 30, 30)).save(root / path)
