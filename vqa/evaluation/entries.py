"""What a comparison is made of: the answers of one model, from a run or from anybody's table.

>>> table_entry("preds.csv", Path("preds.csv"), Columns()).answers[0]
Answered(id='', item_id='9605ab47.jpg', image_id='9605ab47.jpg', question='How many levers are there', truth='two', ...)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.outcomes import UserError
from data_prep.records import Answered
from vqa.evaluation.score import GROUPS, IMAGE_COLUMNS, check_answer_columns, check_column, read_table

TABLE = "table"
BLIND = "blind"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table that `score` and `compare` read."""

    truth: str = "answer"
    prediction: str = "generated_answer"
    group_by: str | None = None  # names the product or image; None: the first of `GROUPS` that has values


@dataclass(frozen=True, slots=True)
class Entry:
    """The answers of one model."""

    name: str
    kind: str  # TABLE, or of a run: "base", "lora" or BLIND
    answers: Sequence[Answered]  # image_id: what names the image; "" in id, item_id or image_id: not known
    grouped_by: str | None = "item_id"  # the column that the answers' item_id is of; None: they have none
    without_truth: int = 0  # rows that were left out
    failed: int = 0  # questions without an answer


def table_entry(name: str, path: Path, columns: Columns) -> Entry:
    """The answers of a CSV or JSONL table. Questions are told apart by a column ``id``, or by image and question.

    Raises:
        UserError: unreadable file, wrong column, or no rows with a truth.
    """
    known, rows = read_table(path)
    check_answer_columns(known, path, columns.truth, columns.prediction)
    if columns.group_by is not None:
        check_column(columns.group_by, known, path)
    grouped_by = columns.group_by or next((name for name in GROUPS if any(row.get(name) for row in rows)), None)
    image = next((name for name in IMAGE_COLUMNS if name in known), "")
    answers = [
        Answered(
            id=row.get("id", "").strip(),
            item_id=row.get(grouped_by, "") if grouped_by else "",
            image_id=row.get(image, "").strip(),
            question=row.get("question", ""),
            truth=row.get(columns.truth, ""),
            answer=row.get(columns.prediction, ""),
        )
        for row in rows
        if row.get(columns.truth, "").strip()
    ]
    if not answers:
        raise UserError(f"{path} has no row with a value in {columns.truth!r}: there is no truth to compare with.")
    return Entry(name, TABLE, answers, grouped_by, len(rows) - len(answers))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or the path as given where two end alike.

    Raises:
        UserError: a path was given twice.
    """
    if twice := [path for path, times in Counter(path.resolve() for path in paths).items() if times > 1]:
        raise UserError(f"{twice[0]} was given more than once.")
    ends = Counter(path.resolve().name for path in paths)
    return [str(path) if ends[path.resolve().name] > 1 else path.resolve().name for path in paths]
