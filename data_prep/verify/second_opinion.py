"""Second opinions: other models answer a product's questions from the image alone, and questions alone without any image.

What the model is shown, with the image (one request a product)::

    Look at the image of this product and answer each question about it with exactly one English word. ...
    1. What color is the mug?
    2. How many handles does it have?

A reply: ``[{"n": 1, "answer": "red"}, {"n": 2, "answer": "one"}]``. It is stored raw, like a generator's; `answers` reads it.
The listing is never shown, nor the generator's answer: whoever sees an answer tends to agree with it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import file_digest
from data_prep.generate.clients.base import Request, mime_type
from data_prep.generate.prompt import Prompter, model_identity, output_limit, validated_image
from data_prep.generate.qa_parser import QAParseError, find_array
from data_prep.outcomes import Failed, Ok
from data_prep.records import Example, Reply
from data_prep.verify.settings import VerifySettings

PROMPTS = Path(__file__).parent / "prompts"
_LINE = re.compile(r"^(\d+)\. (.+)$", re.MULTILINE)
_OPENING = "answer each question"  # of both prompts; the stand-in tells them by it from a request for questions
_ENOUGH = 0.8  # share of the questions that a reply must answer, or it is asked for again


@dataclass(frozen=True, slots=True)
class Quiz:
    """The questions of one request: those about one image, or, without image, those about several products."""

    item_id: str  # its name: the product's id, or a digest of the products' ids
    image_id: str  # "" without image
    image_path: str
    image_sha256: str
    questions: tuple[tuple[str, str], ...]  # id and text, in the order of their numbers
    products: tuple[int, ...]  # how many of the questions are about each product


def quizzes(rows: Iterable[Example]) -> Iterator[Quiz]:
    """One quiz a product, in the order of their ids."""
    for item, asked in sorted(_by_product(rows).items()):
        first = asked[0]
        yield Quiz(item, first.image_id, first.image_path, first.image_sha256, _questions(asked), (len(asked),))


def blind_quizzes(rows: Iterable[Example], products: int) -> Iterator[Quiz]:
    """The same questions without images, those of about ``products`` products in a quiz.

    A product's hash says whether a quiz ends with it. So another product changes the quiz that it is in and no other, and what was
    paid for stays usable.
    """
    chunk: list[list[Example]] = []
    for item, asked in sorted(_by_product(rows).items()):
        chunk.append(asked)
        ends = int(hashlib.sha256(item.encode()).hexdigest(), 16) % products == 0
        if ends or len(chunk) >= 2 * products:
            yield _blind(chunk)
            chunk = []
    if chunk:
        yield _blind(chunk)


def _blind(chunk: Sequence[Sequence[Example]]) -> Quiz:
    name = hashlib.sha256("\n".join(asked[0].item_id for asked in chunk).encode()).hexdigest()[:16]
    questions = tuple(pair for asked in chunk for pair in _questions(asked))
    return Quiz(f"blind-{name}", "", "", "", questions, tuple(map(len, chunk)))


def _by_product(rows: Iterable[Example]) -> Mapping[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for row in rows:
        found.setdefault(row.item_id, []).append(row)
    return found


def _questions(asked: Sequence[Example]) -> tuple[tuple[str, str], ...]:
    return tuple((e.id, " ".join(e.question.split())) for e in sorted(asked, key=lambda e: e.id))


class SecondOpinion(Prompter[Quiz]):
    """Asks the questions of a quiz.

    Args:
        settings: how to ask.
        image_root: folder of the images.
        with_image: whether they are about images or to be guessed.
        answers: the SHA-256 of the stand-in's answers, where it is known already.
    """

    def __init__(self, settings: VerifySettings, image_root: Path, *, with_image: bool, answers: str = "") -> None:
        self.settings: VerifySettings = settings
        self._answers = answers
        self._image_root, self._with_image = image_root, with_image
        self._prompt = PROMPTS / ("with_image.md" if with_image else "blind.md")

    def identity(self) -> Mapping[str, object]:
        return {**model_identity(self.settings, self._answers), "prompt": file_digest(self._prompt)[:12]}

    def request(self, item: Quiz, replies: Sequence[Reply]) -> Request:
        image = b""
        if self._with_image:
            image = validated_image(self._image_root, item.image_path, item.image_id, item.image_sha256)
        limit = output_limit(replies, self.settings)
        return Request(self.prompt(item), image, mime_type(image) if image else "", limit, _schema(len(item.questions)))

    def prompt(self, item: Quiz) -> str:
        """The text of a request."""
        lines, numbered = [], iter(enumerate(item.questions, 1))
        for product, count in enumerate(item.products, 1):
            if not self._with_image:
                lines.append(f"Product {product}:")
            lines += [f"{number}. {text}" for number, (_, text) in (next(numbered) for _ in range(count))]
        return self._prompt.read_text(encoding="utf-8").format(questions="\n".join(lines))

    def outcome(self, item: Quiz, reply: Reply) -> Ok | Failed:
        found = answers(item, reply)
        if found:
            return Ok(reply)
        reason = "cut_off" if reply.finish_reason == "MAX_TOKENS" else "no_opinion"
        return Failed(reason, (reply.text or "")[:100], retry=True, value=reply)

    def violations(self, item: Quiz, reply: Reply) -> str | None:
        lacking = len(item.questions) - len(answers(item, reply))
        return f"{lacking} questions have no answer" if lacking > (1 - _ENOUGH) * len(item.questions) else None


def answers(quiz: Quiz, reply: Reply) -> dict[str, str]:
    """Question id → one-word answer, of the questions that a reply answers."""
    return {
        quiz.questions[number - 1][0]: word
        for number, word in _parsed(reply.text or "")
        if 0 < number <= len(quiz.questions)
    }


@functools.lru_cache(maxsize=1024)  # the shard loop, the worker and the reader ask about a reply within moments
def _parsed(text: str) -> tuple[tuple[int, str], ...]:
    try:
        array = find_array(text)
    except QAParseError:
        return ()
    found: dict[int, str] = {}
    for entry in array:
        if isinstance(entry, dict) and str(entry.get("n", "")).isdigit():
            word = str(entry.get("answer", "")).strip("\"'`*.,;:!?() \t\n").lower()
            if word and not word.count(" ") and len(word) <= 40:
                found.setdefault(int(entry["n"]), word)
    return tuple(found.items())


def asked_in(prompt: str) -> list[tuple[int, str]]:
    """Number and text of the questions of a prompt of this module; none where it is another prompt. For the stand-in."""
    if _OPENING not in prompt:
        return []
    return [(int(number), text) for number, text in _LINE.findall(prompt)]


def _schema(questions: int) -> Mapping[str, object]:
    return {
        "type": "array",
        "minItems": questions,
        "maxItems": questions,
        "items": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "answer": {"type": "string"}},
            "required": ["n", "answer"],
        },
    }
