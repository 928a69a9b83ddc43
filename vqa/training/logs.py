"""The logs of a training. A line of ``log.jsonl``::

{"step": 10, "max_steps": 750, "epoch": 0.04, "loss": 1.92, "learning_rate": 4.9e-5, "grad_norm": 3.1, "samples_per_second": 21.0,
 "waiting_share": 0.02, "memory_bytes": 5200000000, "at": 1764073423.2}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson

from data_prep.files import dumps, write_atomic

BEST = "best.json"
STEPS = "log.jsonl"
VALIDATIONS = "validation.jsonl"
LOGS = (STEPS, VALIDATIONS)


def append(path: Path, line: Mapping[str, object]) -> None:
    """Add a line to a log."""
    with path.open("ab") as file:
        file.write(dumps(line))


def forget_after(path: Path, step: int) -> None:
    """Drop the lines that a training resumed after ``step`` writes again, and a last line that a kill cut off."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and orjson.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_atomic(path, b"".join(kept))
