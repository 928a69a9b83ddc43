"""The files that a training writes about itself, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from data_prep.files import write_atomic

BEST = "best.json"
STEPS = "log.jsonl"
VALIDATIONS = "validation.jsonl"
LOGS = (STEPS, VALIDATIONS)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a log."""
    with path.open("ab") as file:
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of a log that a resumed training writes again, and what a kill left of a last one."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and orjson.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_atomic(path, b"".join(kept))
