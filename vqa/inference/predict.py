"""Answers the questions of a table with any model, with or without an adapter.

Reads ``image_name,question[,answer]`` and writes ``image_name,question,answer,generated_answer,confidence`` and the table's
further columns, in the order of the rows::

    mug.jpg,What color is the mug?,red,red,0.9312
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_prep.files import write_atomic
from data_prep.images.locate import locator
from data_prep.outcomes import Failed, Ok, Recorder, Todo, UserError
from data_prep.records import Example
from vqa.evaluation.score import IMAGE_COLUMNS, check_column, read_table
from vqa.inference.source import Source

COLUMNS = ("image_name", "question", "answer", "generated_answer", "confidence")
OURS = COLUMNS[-2:]  # an earlier prediction's, which are made anew


@dataclass(slots=True)
class Answers:
    """An answer per question, in the order asked; "" where the image could not be used."""

    answers: list[str]
    confidences: list[float | None]  # 0 to 1
    problems: list[str] = field(default_factory=list)  # "row 3, mug.jpg: There is no image ..."
    located: str = ""  # how images were found that were not where the table says

    @property
    def exit_code(self) -> int:
        """0 if every question has an answer, else 1."""
        return 1 if self.problems else 0


def answer_all(
    asked: Sequence[tuple[str, str]],
    source: Source,
    image_dir: Path,
    warn: Callable[[str], None] = lambda _: None,
) -> Answers:
    """Answer pairs of an image file in ``image_dir`` and a question. An image is encoded once for all of its questions.

    A missing or broken image gives an empty answer, a warning and a problem.
    """
    from vqa.inference.answerer import Answerer  # torch takes seconds to import
    from vqa.models.base import quiet_loading
    from vqa.settings import EvaluateSettings

    found = Answers([""] * len(asked), [None] * len(asked))
    variant = "asked"

    def recorder(row: int) -> Recorder:
        def record(outcome: Ok | Failed, *, durable: bool = False) -> None:
            if isinstance(outcome, Ok):
                found.answers[row], found.confidences[row] = outcome.value.answer, outcome.value.confidence
            else:
                found.problems.append(f"row {row + 1}, {asked[row][0]}: {outcome.detail or outcome.reason}")
                warn(found.problems[-1])

        return record

    order = sorted(range(len(asked)), key=lambda row: asked[row][0])  # the questions about an image must be adjacent
    with quiet_loading():
        answerer = Answerer(source.model, {variant: source.adapter}, EvaluateSettings(), image_dir)
    answerer.process(Todo(_example(row, *asked[row]), recorder(row), variant) for row in order)
    found.located = locator(image_dir).summary()
    return found


def _example(row: int, image: str, question: str) -> Example:
    image_id = PurePosixPath(image).stem  # ABO's own files are named otherwise, but tables may name the id
    return Example(
        str(row), image, image_id, image, question, answer="", category="", question_type="", product_type=""
    )


def predict(
    source: Source,
    image_dir: Path,
    csv_path: Path,
    output: Path,
    warn: Callable[[str], None] = lambda _: None,
) -> Answers:
    """Answer every row of ``csv_path`` and write ``output``, whole or not at all.

    Raises:
        UserError: a folder, file or column is missing, or ``output`` cannot be written.
    """
    require_writable(output)
    if not image_dir.is_dir():
        raise UserError(f"There is no image folder {image_dir}.")
    columns, rows = read_table(csv_path)
    image = next((name for name in IMAGE_COLUMNS if name in columns), IMAGE_COLUMNS[0])
    check_column(image, columns, csv_path)
    check_column("question", columns, csv_path)
    asked = [(row.get(image, ""), row.get("question", "")) for row in rows]
    if replaced := [name for name in OURS if name in columns]:
        warn(f"{csv_path} has the columns {', '.join(replaced)} already: {output} gets new ones")
    found = answer_all(asked, source, image_dir, warn) if asked else Answers([], [])
    write_atomic(output, _csv(rows, columns, image, found))
    return found


def require_writable(file: Path) -> None:
    """Check before hours of work that their result can be written.

    Raises:
        UserError: ``file`` is a folder, or its own folder is not writable and cannot be made.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: give the name of a file.")
    nearest = next(folder for folder in file.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"Cannot write {file}: {nearest} is not a writable folder.")


def _csv(rows: Sequence[Mapping[str, str]], columns: Sequence[str], image: str, found: Answers) -> bytes:
    """The table with answers; ``image`` is the column that names the image, which is called image_name from now on."""
    further = [name for name in columns if name not in (*COLUMNS, image)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *further))
    for row, answer, confidence in zip(rows, found.answers, found.confidences, strict=True):
        asked = (row.get(column, "") for column in (image, "question", "answer"))
        shown = "" if confidence is None else f"{confidence:.4f}"
        writer.writerow((*asked, answer, shown, *(row.get(column, "") for column in further)))
    return text.getvalue().encode()
