"""The records that stages hand to each other, and the one way they are read from and written to disk.

A line of ``1_prepare/products.jsonl`` is a `Product`::

    {"item_id": "B0ADB4121C", "image_id": "70a3384411L", "image_path": "ab/ab12cd34.jpg", "name": "grey sheer curtain",
     "product_type": "HOME_BED_AND_BATH", "color": "grey", "keywords": ["curtains"]}
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import orjson

T = TypeVar("T")

Category = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class Product:
    """A listing worth asking about: one item, its main image, and what the listing says of it."""

    item_id: str
    image_id: str
    image_path: str  # relative to the image folder, with forward slashes
    name: str
    product_type: str
    color: str
    keywords: list[str]


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that was dropped, and why: a listing (prepare) or a question/answer pair (curate)."""

    item_id: str  # "" where a line could not be read at all
    reason: str  # one of a closed set of snake_case words, so that reasons can be counted
    detail: str = ""  # what a person needs in order to look it up: file and line, the answer, the other item


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What validation learnt from decoding one image completely."""

    image_id: str
    image_path: str
    sha256: str  # of the file's bytes
    width: int
    height: int
    format: str  # Pillow's name: "JPEG"
    dhash: str  # 64-bit difference hash, 16 hex digits; near-equal pictures differ in few bits
    colors: str = ""  # 4 x 4 RGB thumbnail, 96 hex digits: tells a red mug from a blue one, which the hash cannot


@dataclass(frozen=True, slots=True)
class Reply:
    """A generator's raw reply to one request, stored before anything parses it."""

    item_id: str
    image_id: str
    text: str | None  # None where the API gave no text (blocked, cut off)
    finish_reason: str
    model: str
    input_tokens: int
    output_tokens: int
    dollars: float
    generator: str = "gemini"
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class QAPair:
    """One checked pair of a reply."""

    question: str
    answer: str
    category: str  # a Category, or "" where the generator gave none and the configuration allows that


@dataclass(slots=True)  # not frozen: that would double the time in which a million of them are read
class Example:
    """One row of the data set: a question about a picture, with its one-word answer."""

    id: str  # stable: the same product and question have the same id in every run
    item_id: str
    image_id: str
    image_path: str
    question: str
    answer: str
    category: str
    question_type: str
    product_type: str
    picture_group: str = ""  # equal or nearly equal pictures share it; no group is on two sides of a split


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one `Example`."""

    id: str
    item_id: str
    image_id: str
    question: str
    truth: str
    answer: str
    confidence: float | None = None  # probability of the answer as the model sees it, 0 to 1
    seconds: float = 0.0  # the question's share of its batch's time


@dataclass(slots=True)
class Skipped:
    """Lines that a reader passed over; counted, never silent."""

    torn: int = 0  # an unfinished last line: a write that was cut off
    broken: list[str] = field(default_factory=list)  # "file:line" of lines in the middle that do not parse


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """Build a record from a parsed line, ignoring keys that the record does not have."""
    try:
        return kind(**data)  # nearly always: millions of lines are read
    except TypeError:
        names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
        return kind(**{k: v for k, v in data.items() if k in names})


def dumps(record: Any) -> bytes:
    """One line of JSON, with its line end. Dataclasses are written with their field names."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def read_jsonl(path: Path, kind: type[T]) -> Iterator[T]:
    """Stream the records of a finished file.

    Raises:
        ValueError: a line does not parse. Finished files are written atomically, so that is damage, not a torn write.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield from_dict(kind, orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: not a {kind.__name__} record ({error}). The file was damaged after it was "
                    f"written: delete it and run the stage again."
                ) from error


class AtomicFile:
    """A file that appears under its name complete or not at all.

    Written to a temporary file in the same folder (so that the rename stays within one file system), flushed to the
    disk and renamed. Leaving the ``with`` block by an exception removes the temporary file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> AtomicFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.parent / f".{self.path.name}.{uuid.uuid4().hex}.tmp"
        self._file = self._temporary.open("xb")
        return self

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._temporary.replace(self.path)
                sync_folder(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with AtomicFile(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_atomic(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Stream records into a file that appears when the last one is on disk; returns how many."""
    count = 0
    with AtomicFile(path) as file:
        for record in records:
            file.write(dumps(record))
            count += 1
    return count


class UserError(ValueError):
    """A mistake that the user can mend: its message says what is wrong, where, and what to do. Shown without a traceback."""


@dataclass(frozen=True, slots=True)
class Ok:
    """An item that was worked on successfully, and what came of it."""

    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that was not: a counted reason, what a person needs to look it up, and whether trying again can help."""

    reason: str
    detail: str = ""
    retry: bool = False
    value: dict[str, Any] | None = None  # what was obtained all the same: a paid reply that cannot be used


class Emit(Protocol):
    """How a stage hands over the outcome of one item; safe to call from several threads."""

    def __call__(self, key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
        """Append the outcome; with ``durable`` return only when it is on the disk."""


class Interrupted(Exception):
    """Work stopped before its end because it was asked to; what was done is on disk, and starting it again goes on."""
