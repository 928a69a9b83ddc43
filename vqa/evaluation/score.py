"""Scores any table of answers, made by whatever model, with the report's metrics and intervals.

``score_table("preds.csv", truth="answer", prediction="generated_answer")`` on a CSV such as::

    image_name,question,answer,generated_answer
    9605ab47.jpg,What is the main shape of the handle,lever,circle
"""

from __future__ import annotations

import codecs
import csv
import difflib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from data_prep.outcomes import UserError
from vqa.evaluation.metrics import NAMES, MetricSettings, class_f1, per_answer
from vqa.evaluation.statistics import bounds, codes, interval

CLUSTERS = ("item_id", "image_id", "image_name", "filename", "image_path")
JSON_LINES = {".jsonl", ".ndjson"}


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV or JSONL file; a missing value is "".

    Raises:
        UserError: no such file, not a table, or a damaged line, which is named.
    """
    try:
        if path.suffix.lower() in JSON_LINES:
            return _read_jsonl(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = []
            try:
                for row in reader:
                    if None in row:
                        raise UserError(
                            f"{path}:{reader.line_num}: more values than columns. Quote values that hold commas."
                        )
                    rows.append({key: value or "" for key, value in row.items()})
            except csv.Error as error:
                raise UserError(
                    f"{path}:{reader.reader.line_num}: not CSV ({error}). Is a quotation mark open?"
                ) from error
            return list(reader.fieldnames or []), rows
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path} as a table: {error}. CSV and JSONL in UTF-8 are understood.") from error


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
                raise UserError(f"{path}:{number}: not JSON ({error}). Mend or delete the line.") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: every line must be a JSON object.")
            columns.update(dict.fromkeys(row))
            rows.append({key: "" if value is None else str(value) for key, value in row.items()})
    return list(columns), rows


def check_column(name: str, columns: list[str], option: str, path: Path) -> str:
    """The column, if the table has it.

    Raises:
        UserError: it has not; lists its columns and names the nearest. Or it has it twice.
    """
    if columns.count(name) > 1:
        raise UserError(f"{path} has {columns.count(name)} columns {name!r}: rename those that are not meant.")
    if name in columns:
        return name
    near = difflib.get_close_matches(name.lower(), [c.lower() for c in columns], n=1, cutoff=0.5)
    nearest = next((c for c in columns if near and c.lower() == near[0]), None)
    hint = f" Did you mean {option} {nearest}?" if nearest else ""
    raise UserError(f"{path} has no column {name!r}; its columns are {', '.join(columns) or '(none)'}.{hint}")


def score_table(
    path: Path, truth: str, prediction: str, cluster: str | None = None, settings: MetricSettings | None = None
) -> dict[str, Any]:
    """Every metric of a table with its 95 % interval.

    Args:
        path: CSV, or JSONL by its ending.
        truth, prediction: names of columns.
        cluster: column that names the product or image; by default the first of `CLUSTERS` that has values, else every
            row counts as independent. So does a row whose cell is empty.
        settings: which BERT; None leaves BERTScore out.

    Raises:
        UserError: unreadable file, wrong column, or no rows with a truth. Those without one are left out and counted.
    """
    columns, rows = read_table(path)
    check_column(truth, columns, "--truth", path)
    check_column(prediction, columns, "--prediction", path)
    if cluster is not None:
        check_column(cluster, columns, "--cluster", path)
    else:
        cluster = next((name for name in CLUSTERS if any(row.get(name) for row in rows)), None)
    if not rows:
        raise UserError(f"{path} has columns but no rows: nothing to score.")
    without = len(rows)
    rows = [row for row in rows if row.get(truth, "").strip()]
    without -= len(rows)
    if not rows:
        raise UserError(f"{path}: the column {truth!r} is empty in all rows: there is no truth to score against.")
    pairs = [(row.get(truth, ""), row.get(prediction, "")) for row in rows]
    clusters = codes([(row.get(cluster) if cluster else None) or number for number, row in enumerate(rows)])
    answers = per_answer(pairs, settings)
    return {
        "file": str(path),
        "questions": len(rows),
        "without_truth": without,
        "cluster": cluster,
        "clusters": int(clusters.max()) + 1,
        "empty_answers": sum(not answer.strip() for _, answer in pairs),
        "metrics": {name: asdict(interval(values, clusters)) for name, values in answers.values.items()}
        | class_f1(pairs),
        "gaps": answers.gaps,
        "bertscore": answers.bertscore,
    }


def render(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    by = (
        f"by {result['cluster']} ({result['clusters']:,})"
        if result["cluster"]
        else "row by row (no column to cluster by)"
    )
    lines = [
        f"{result['file']}: {result['questions']:,} answers, {result['empty_answers']:,} empty; intervals {by}",
        *([f"left out: {result['without_truth']:,} rows without a truth"] if result["without_truth"] else []),
        "",
    ]
    for name, label in NAMES.items():
        value = result["metrics"].get(name)
        if isinstance(value, dict):
            lines.append(f"  {label:<32} {value['mean']:.4f}  {bounds(value)}")
        elif value is not None:
            lines.append(f"  {label:<32} {value:.4f}")
        else:
            lines.append(f"  {label:<32} —  {result['gaps'].get(name, 'not computed')}")
    return "\n".join(lines)
