"""What a run has paid for single requests. Each task appends to a file of its own: locks cannot be trusted between nodes::

    ledger/spending/20260102T030405-9f2c0d1e2f3a.jsonl
    {"request": 17, "reserved": 0.0105}      before it is sent: the most that it can cost
    {"request": 17, "paid": 0.00064}         afterwards; without this line it counts in full, as after a kill
    {"left": 0.0009}                         the last line: dollars that the task had claimed of the budget, and did not need
    ledger/spending/20260102T030405-9f2c0d1e2f3a.taken      a folder: another task has taken these

Batches are counted by their own files, see `data_prep.generate.batch_state`.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.files import last_json_line, sync_folder
from data_prep.generate.quota.allowance import claim


@dataclass(frozen=True, slots=True)
class Spent:
    """Dollars."""

    paid: float = 0.0
    reserved: float = 0.0  # by requests and batches whose cost is not known: under way, or lost at a kill

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.paid + other.paid, self.reserved + other.reserved)


class SpendingLog:
    """Writes what the requests of one task cost. The file is created with the first. Safe to use from several threads.

    Args:
        ledger: the run's.
    """

    def __init__(self, ledger: Path) -> None:
        now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._path = _folder(ledger) / f"{now}-{uuid.uuid4().hex[:12]}.jsonl"
        self._descriptor: int | None = None
        self._requests = 0
        self._lock = threading.Lock()

    def reserve(self, dollars: float) -> int:
        """Write down the most that a request can cost, before it is sent; its number, for `settle`.

        Raises:
            OSError: the disk is full or gone.
        """
        with self._lock:
            self._requests += 1
            self._write({"request": self._requests, "reserved": dollars})
            return self._requests

    def settle(self, request: int, paid: float) -> None:
        """Write down what a request cost."""
        with self._lock:
            self._write({"request": request, "paid": paid})

    def close(self, left: float) -> None:
        """Write down what the task does not need of the budget any more."""
        with self._lock:
            if left:
                self._write({"left": left})
            if self._descriptor is not None:
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None

    def _write(self, line: dict[str, float]) -> None:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            sync_folder(self._path.parent)
        # Line breaks on both sides: what a full disk cut off does not spoil the next line.
        data = b"\n" + orjson.dumps(line) + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]


def requests_spent(ledger: Path) -> Spent:
    """What all single requests of a run have cost."""
    total = Spent()
    for path in _files(ledger):
        reserved: dict[int, float] = {}
        paid: dict[int, float] = {}
        for line in path.read_bytes().splitlines():
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError:  # empty, or cut off: what it was to say never happened
                continue
            if "reserved" in fields:
                reserved[fields["request"]] = fields["reserved"]
            elif "paid" in fields:
                paid[fields["request"]] = fields["paid"]
        unknown = sum(dollars for request, dollars in reserved.items() if request not in paid)
        total += Spent(sum(paid.values()), unknown)
    return total


def take_leftovers(ledger: Path) -> float:
    """Dollars that tasks which have ended claimed of the budget and did not use; each are given to one caller."""
    return sum(
        left
        for path in _files(ledger)
        if (left := (last_json_line(path) or {}).get("left")) is not None and claim(path.with_suffix(".taken"))
    )


def _folder(ledger: Path) -> Path:
    return ledger / "spending"


def _files(ledger: Path) -> Iterator[Path]:
    yield from sorted(_folder(ledger).glob("*.jsonl"))
