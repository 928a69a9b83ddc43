"""``dataset_7.csv``: the questions of one shard, one row a product.

::

    item_id,image_id,qas
    B0ADB4121C,70a3384411L,"[{""question"": ""What color is it?"", ""answer"": ""grey"", ""category"": ""easy""}, ...]"
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.abo.reader import read_images_index
from data_prep.files import AtomicFile
from data_prep.outcomes import UserError
from data_prep.records import QAPair, from_dict

_HEADER = ["item_id", "image_id", "qas"]


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One product and its pairs."""

    item_id: str
    image_id: str
    qas: list[QAPair]


def write(path: Path, rows: Iterable[CsvRow]) -> int:
    """Write a file atomically; returns the number of rows."""
    count = 0
    with AtomicFile(path) as file:
        file.write(csv_line(_HEADER))
        for row in rows:
            pairs = json.dumps([asdict(pair) for pair in row.qas], ensure_ascii=False)
            file.write(csv_line([row.item_id, row.image_id, pairs]))
            count += 1
    return count


def read(path: Path) -> Iterator[CsvRow]:
    """Stream the rows of a file.

    Raises:
        ValueError: a line is not a row; names it.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        if next(lines, None) != _HEADER:
            raise ValueError(f"{path}: the first line must be {','.join(_HEADER)}")
        for row in lines:
            try:
                item_id, image_id, qas = row
                yield CsvRow(item_id, image_id, [from_dict(QAPair, pair) for pair in json.loads(qas)])
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}:{lines.line_num}: not a row of {','.join(_HEADER)} ({error})") from error


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands in a file that anybody may have written: the pairs are not parsed."""

    item_id: str
    image_id: str
    qas: str  # JSON or a Python literal, as pandas writes it


def load_dataset_and_metadata(
    csv_paths: Sequence[Path], image_metadata: Path | None = None
) -> tuple[list[Row], dict[str, str]]:
    """Read the questions and where their images are.

    Args:
        csv_paths: ``dataset_{i}.csv`` files, or any CSV with the columns item_id, image_id and qas, among others.
        image_metadata: ABO's ``images.csv.gz``; None where the images are found by their id alone.

    Returns:
        The rows of all files in order, and the path of each image below the image folder by its id, as far as the metadata knows it.

    Raises:
        UserError: a file cannot be read, or lacks a column.
    """
    rows = [row for path in csv_paths for row in _rows(path)]
    known = read_images_index(image_metadata) if image_metadata else {}
    return rows, {row.image_id: known[row.image_id] for row in rows if row.image_id in known}


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            lines = csv.DictReader(file)
            if missing := set(_HEADER) - set(lines.fieldnames or ()):
                raise UserError(
                    f"{path} lacks the columns {', '.join(sorted(missing))}. Its first line must name item_id, image_id and qas; "
                    f"it names {', '.join(lines.fieldnames or ()) or 'nothing'}."
                )
            for line in lines:
                item_id, image_id, qas = ((line[name] or "").strip() for name in _HEADER)
                yield Row(item_id or image_id, image_id, qas)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Cannot read {path} as CSV in UTF-8: {error}.") from error


def csv_line(fields: list[str]) -> bytes:
    """One line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()
