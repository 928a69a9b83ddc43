"""Scores a table of answers of any model with the report's metrics and intervals.

``score_table("preds.csv", truth="answer", prediction="generated_answer")`` on a CSV such as::

    image_name,question,answer,generated_answer
    9605ab47.jpg,What is the main shape of the handle,lever,circle
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.curate.question_text import question_type
from data_prep.outcomes import UserError, unknown_name
from vqa.evaluation.bertscore import BertSettings
from vqa.evaluation.collapse import Spread, alarm, spreads
from vqa.evaluation.metrics import DEFINITIONS, Scores, score
from vqa.evaluation.statistics import Interval, format_interval, label_codes

GROUPS = ("item_id", "image_id", "image_name", "filename", "image_path")
IMAGE_COLUMNS = ("image_name", "filename", "image_path")  # names of the image column, the first that is there
JSON_LINES = {".jsonl", ".ndjson"}
# Names of columns with a model's answers. Scoring a model against one of them gives a good score that means nothing.
_MODEL_ANSWERS = re.compile(r"generat|predict|(?:^|_)preds?(?:_|$)|output|response", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TableScores:
    """The scores of one table."""

    file: str
    without_truth: int  # rows that were left out
    group_by: str | None  # the column whose values are resampled for the intervals; None: every row is independent
    groups: int
    scores: Scores
    answers: dict[str, Spread]  # how varied they are, by type of question; "" where the table has no questions


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV or JSONL file in UTF-8; a missing value is "".

    Raises:
        UserError: no such file, not a table, no columns, or a damaged line, which is named.
    """
    try:
        columns, rows = _read_jsonl(path) if path.suffix.lower() in JSON_LINES else _read_csv(path)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path} as a table: {error}. Give CSV or JSONL in UTF-8.") from error
    if not columns:
        raise UserError(f"{path} has no columns. Is it empty?")
    return columns, rows


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        rows = []
        try:
            for row in reader:
                if None in row:
                    raise UserError(
                        f"{path}:{reader.line_num}: more values than columns. Quote values that contain commas."
                    )
                rows.append({key: value or "" for key, value in row.items()})
        except csv.Error as error:
            line = reader.reader.line_num  # of DictReader's inner reader: its own is not updated on errors
            raise UserError(f"{path}:{line}: not CSV ({error}). Check for an unclosed quotation mark.") from error
        return list(reader.fieldnames or []), rows


def _read_jsonl(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    columns: dict[str, None] = {}
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
            except orjson.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error}). Fix or delete the line.") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: every line must be a JSON object.")
            columns.update(dict.fromkeys(row))
            rows.append({key: "" if value is None else str(value) for key, value in row.items()})
    return list(columns), rows


def check_column(name: str, columns: list[str], path: Path, never: Collection[str] = ()) -> None:
    """Raise unless the table has the column, once.

    Args:
        name: of the column.
        columns: of the table.
        path: of the table.
        never: columns that are not suggested instead.

    Raises:
        UserError: it is missing, and the nearest one is named; or it is there twice.
    """
    if name not in columns:
        raise UserError(f"{path}: {unknown_name(name, [c for c in columns if c not in never], 'column')}")
    if columns.count(name) > 1:
        raise UserError(f"{path} has {columns.count(name)} columns named {name!r}. Rename all but one.")


def check_answer_columns(columns: list[str], path: Path, truth: str, prediction: str) -> None:
    """Raise unless the table has a column of truths and another one of answers. Neither is suggested for the other.

    Raises:
        UserError: one of them is missing or there twice, or both are the same column.
    """
    if truth == prediction:
        raise UserError(f"--truth and --prediction both name {truth!r}, which would be scored against itself.")
    check_column(truth, columns, path, [c for c in columns if c == prediction or _MODEL_ANSWERS.search(c)])
    check_column(prediction, columns, path, [truth])


def score_table(
    path: Path, truth: str, prediction: str, group_by: str | None = None, bert: BertSettings | None = None
) -> TableScores:
    """Every metric of a table with its 95 % interval.

    Args:
        path: CSV, or JSONL by its suffix.
        truth, prediction: columns.
        group_by: column that names the product or image; None: the first of `GROUPS` that has values, or else every row
            counts as independent. So does a row whose cell is empty.
        bert: None leaves BERTScore out.

    Raises:
        UserError: unreadable file, wrong column, or no rows with a truth. Those without one are left out and counted.
    """
    columns, table = read_table(path)
    check_answer_columns(columns, path, truth, prediction)
    if group_by is not None:
        check_column(group_by, columns, path)
    if not table:
        raise UserError(f"{path} has columns but no rows: nothing to score.")
    rows = [row for row in table if row.get(truth, "").strip()]
    if not rows:
        raise UserError(f"{path}: the column {truth!r} is empty in all rows: there is no truth to score against.")
    group_by = group_by or next((name for name in GROUPS if any(row.get(name) for row in table)), None)
    groups = label_codes([(row.get(group_by) if group_by else None) or number for number, row in enumerate(rows)])
    pairs = [(row.get(truth, ""), row.get(prediction, "")) for row in rows]
    # The type by the question's words alone: "yes/no" is known from the truth, which a guesser must not be told.
    types = [question_type(row["question"], "") if row.get("question") else "" for row in rows]
    return TableScores(
        file=str(path),
        without_truth=len(table) - len(rows),
        group_by=group_by,
        groups=int(groups.max()) + 1,
        scores=score(pairs, groups, bert),
        answers=spreads((kind, *pair) for kind, pair in zip(types, pairs, strict=True)),
    )


def render(result: TableScores) -> str:
    """The scores as lines of text."""
    by = f"by {result.group_by} ({result.groups:,})" if result.group_by else "row by row (no column to group by)"
    scores = result.scores
    lines = [f"{result.file}: {scores.questions:,} answers, {scores.empty_answers:,} empty; intervals {by}"]
    if result.without_truth:
        lines.append(f"left out: {result.without_truth:,} rows without a truth")
    lines.append("")
    for name, definition in DEFINITIONS.items():
        value = scores.metrics.get(name)
        if value is None:
            figure = f"—  {scores.gaps[name]}"
        elif isinstance(value, Interval):
            figure = f"{value.mean:.4f}  {format_interval(value)}"
        else:
            figure = f"{value:.4f}"
        lines.append(f"  {definition.label:<32} {figure}")
    if said := alarm(result.answers):
        lines += ["", f"collapsed answers: {said}"]
    return "\n".join(lines)
