"""``dataset_7.csv``: the questions of one shard, one row a product.

::

    item_id,image_id,qas
    B0ADB4121C,70a3384411L,"[{""question"": ""What color is it?"", ""answer"": ""grey"", ""category"": ""easy""}, ...]"
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.files import AtomicFile
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
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        if next(lines, None) != _HEADER:
            raise ValueError(f"{path}: the first line must be {','.join(_HEADER)}")
        for row in lines:
            try:
                item_id, image_id, qas = row
                yield CsvRow(item_id, image_id, [from_dict(QAPair, pair) for pair in json.loads(qas)])
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}:{lines.line_num}: not a row of {','.join(_HEADER)} ({error})") from error


def csv_line(fields: list[str]) -> bytes:
    """One line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()
