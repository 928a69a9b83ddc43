"""The records that stages pass to each other.

A line of ``1_prepare/products.jsonl`` is a `Product`::

    {"item_id": "B0ADB4121C", "image_id": "70a3384411L", "image_path": "ab/ab12cd34.jpg", "name": "grey sheer curtain",
     "product_type": "HOME_BED_AND_BATH", "color": "grey", "keywords": ["curtains"], "material": "polyester", "pattern": "solid",
     "shape": "rectangular", "finish": ""}
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

TEACHER_FILE = "teacher.json"  # in the folder of the curated splits


@dataclass(frozen=True, slots=True)
class Product:
    """A listing worth asking about: one item, its main image, and what the listing says about it."""

    item_id: str
    image_id: str
    image_path: str  # relative to the image folder, with forward slashes
    name: str
    product_type: str
    color: str
    keywords: list[str]
    # Every value of the listing's fields, joined by commas; "" where it has none.
    material: str = ""  # material and fabric_type
    pattern: str = ""
    shape: str = ""  # item_shape
    finish: str = ""  # finish_type
    image_sha256: str = ""  # of the image as it was validated; "" before that

    @property
    def witness(self) -> tuple[str, ...]:
        """What the listing itself says about how the product looks: answers are checked against it, so no prompt shows it."""
        return (self.color, self.material, self.pattern, self.shape, self.finish)


@dataclass(frozen=True, slots=True)
class Teacher:
    """The model whose answers a dataset holds: ``teacher.json`` beside the splits."""

    model: str
    stand_in: bool = False  # a server of this project replayed stored answers
    terms: list[str] = field(default_factory=list)  # that it is used under, in sentences


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that was dropped, and why: a listing (prepare) or a question/answer pair (curate)."""

    item_id: str  # "" if a line could not be read at all
    reason: str  # snake_case, from a fixed set, so that reasons can be counted
    detail: str = ""  # what a person needs to look into it: file and line, the answer, the other item


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What validation found by decoding one image completely."""

    image_id: str
    image_path: str
    sha256: str  # of the file's bytes
    width: int
    height: int
    format: str  # Pillow's name: "JPEG"
    dhash: str  # 64-bit difference hash, 16 hex digits; nearly equal images differ in few bits
    colors: str  # 4 x 4 RGB thumbnail, 96 hex digits: tells a red mug from a blue one, which the hash cannot


@dataclass(frozen=True, slots=True)
class Usage:
    """Billed tokens of one request by kind, under one spelling for all clients."""

    input_tokens: int = 0  # text and image
    output_tokens: int = 0  # thoughts and text
    image_tokens: int | None = None  # of the input; None: the API does not break it down
    thought_tokens: int = 0  # of the output: what the model thought before it answered


@dataclass(frozen=True, slots=True)
class Reply:
    """A generator's raw reply to one request, stored before anything parses it."""

    item_id: str
    image_id: str
    text: str | None  # None if the API gave no text (blocked, cut off)
    finish_reason: str
    model: str  # that was asked for
    input_tokens: int
    output_tokens: int
    dollars: float
    generator: str = "gemini"
    seconds: float = 0.0
    image_tokens: int | None = None  # as in `Usage`
    thought_tokens: int = 0
    model_version: str = ""  # that answered, which may be another than was asked for; "": the API does not say
    model_status: str = ""  # what the API says of that model's life: STABLE, LEGACY, DEPRECATED, ...
    tier: str = "standard"  # at whose price it was billed: standard, flex, batch


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question/answer pair of a reply that passed the parser."""

    question: str
    answer: str
    category: str  # easy, medium or hard; "" if the generator gave none and the configuration allows that


@dataclass(slots=True)  # not frozen: creating a frozen dataclass takes twice as long, and a million of them are read
class Example:
    """One row of the dataset: a question about an image, with its one-word answer."""

    id: str  # stable: the same product and question have the same id in every run
    item_id: str
    image_id: str
    image_path: str
    question: str
    answer: str
    category: str
    question_type: str
    product_type: str
    model_version: str = ""  # that answered; "": the API did not say
    image_sha256: str = ""  # of the image file that was asked about


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one `Example`, as it is stored: without the truth, which curation may change."""

    id: str
    item_id: str
    image_id: str  # that was shown
    answer: str
    confidence: float | None = None  # the model's probability of the answer, 0 to 1
    seconds: float = 0.0  # the batch's time divided by its questions


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its truth and a model's answer."""

    id: str
    item_id: str
    image_id: str
    question: str
    truth: str
    answer: str
    confidence: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Opinions:
    """What is known of one generated answer from others than its generator. Never written into the dataset; see docs/truth.md."""

    seen: str = "unchecked"  # another model, with the image and without the listing: agreed, contested
    blind: str = "unchecked"  # a model without the image: right, wrong
    witness: str = "silent"  # the listing's own field: agrees, differs
    seen_answer: str = ""
    blind_answer: str = ""
    listing: str = ""  # the field's value, where the question asks for exactly that


def by_image(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples grouped by image, images in order of first appearance."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.image_path].append(example)
    return dict(groups)


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """Build a record from a parsed line, ignoring keys that the record does not have.

    Raises:
        TypeError: a key is missing.
    """
    try:
        return kind(**data)  # the fast path, since millions of lines are read
    except TypeError:
        names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
        return kind(**{k: v for k, v in data.items() if k in names})
