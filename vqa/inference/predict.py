"""Answers the questions of a CSV file with any model folder, with or without an adapter.

Reads ``image_name,question[,answer]`` and writes ``image_name,question,answer,generated_answer``, in the order of the rows::

    mug.jpg,What color is the mug?,red,red
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.files import write_atomic
from data_prep.outcomes import Failed, Ok, UserError
from data_prep.records import Example
from vqa.evaluation.score import check_column, read_table

if TYPE_CHECKING:
    from vqa.settings import EvaluateSettings, ModelSettings

COLUMNS = ("image_name", "question", "answer", "generated_answer")
IMAGE_COLUMNS = ("image_name", "filename", "image_path")


@dataclass(slots=True)
class Answers:
    """An answer a question, in the order asked; "" where the image could not be used."""

    answers: list[str]
    confidence: list[float | None]
    problems: list[str] = field(default_factory=list)  # "row 3, mug.jpg: image_missing ..."

    @property
    def exit_code(self) -> int:
        """0 where every question has an answer, else 1."""
        return 1 if self.problems else 0


def answer_all(
    asked: Sequence[tuple[str, str]],
    model: ModelSettings,
    adapter: Path | None,
    image_dir: Path,
    settings: EvaluateSettings | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Answers:
    """Answer (image file name within ``image_dir``, question) pairs; images that occur often are encoded once.

    A missing or broken image gives an empty answer, a warning and a problem.
    """
    from vqa.inference.answerer import Answerer  # torch takes seconds to import
    from vqa.models.base import quiet_loading
    from vqa.settings import EvaluateSettings

    found = Answers([""] * len(asked), [None] * len(asked))
    variant = "base" if adapter is None else "lora"
    done: set[str] = set()

    def emit(key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
        index = int(key)
        done.add(key)
        if isinstance(outcome, Ok):
            found.answers[index] = outcome.value["answer"]
            found.confidence[index] = outcome.value.get("confidence")
        else:
            problem = f"row {index + 1}, {asked[index][0]}: {outcome.detail or outcome.reason}"
            found.problems.append(problem)
            warn(problem)

    order = sorted(range(len(asked)), key=lambda i: asked[i][0])  # the questions about an image stand together
    items = (Example(str(i), asked[i][0], asked[i][0], asked[i][0], asked[i][1], "", "", "", "") for i in order)
    with quiet_loading():
        answerer = Answerer(model, {variant: adapter}, settings or EvaluateSettings(), image_dir)
    answerer.process(_stream(items), {variant: emit}, lambda _variant, _key: True)
    assert len(done) == len(asked), "every question ends as an answer or a problem"
    return found


def base_of(adapter: Path | None) -> str | None:
    """The base that an adapter says it was trained on; None where it says nothing."""
    if adapter is None:
        return None
    try:
        told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return told.get("base_model_name_or_path") or None
    except (OSError, ValueError, AttributeError):
        return None  # whoever loads the adapter says what is wrong with it


def _stream(items: Iterator[Example]) -> Iterator[Example]:
    yield from items


def predict(
    model: ModelSettings,
    adapter: Path | None,
    image_dir: Path,
    csv_path: Path,
    output: Path,
    settings: EvaluateSettings | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Answers:
    """Answer every row of ``csv_path`` and write ``output``, whole or not at all.

    Raises:
        UserError: a folder or file is missing, or a column is, or nothing can be written to ``output``.
    """
    require_writable(output)
    if not image_dir.is_dir():
        raise UserError(f"There is no image folder {image_dir}.")
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that training wrote.")
    columns, rows = read_table(csv_path)
    image = next((name for name in IMAGE_COLUMNS if name in columns), IMAGE_COLUMNS[0])
    check_column(image, columns, "the column", csv_path)
    check_column("question", columns, "the column", csv_path)
    asked = [(row.get(image, ""), row.get("question", "")) for row in rows]
    found = answer_all(asked, model, adapter, image_dir, settings, warn) if asked else Answers([], [])
    write_atomic(output, _csv(rows, image, found.answers))
    return found


def require_writable(file: Path) -> None:
    """Look before hours of work whether their result can be written.

    Raises:
        UserError: ``file`` is a folder, or its own folder takes no files and cannot be made.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: give the file that the answers go to.")
    nearest = next(folder for folder in file.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"Cannot write {file}: {nearest} is no folder that takes files.")


def predict_one(
    model: ModelSettings, adapter: Path | None, picture: Path, question: str, settings: EvaluateSettings | None = None
) -> Answers:
    """Answer one question about one image."""
    if not picture.is_file():
        raise UserError(f"There is no image {picture}.")
    picture = picture.resolve()  # a link leads to where the image is
    return answer_all([(picture.name, question)], model, adapter, picture.parent, settings)


def _csv(rows: Sequence[Mapping[str, str]], image: str, answers: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, answer in zip(rows, answers, strict=True):
        writer.writerow((*(row.get(column, "") for column in (image, "question", "answer")), answer))
    return text.getvalue().encode()
