"""Amounts that several tasks share (dollars, a day's requests), without a server and without locks.

An amount is cut into numbered pieces. A task claims a piece by creating the folder of its number::

    ledger/dollars/0/42                     piece 42 of a run's budget, a tenth of a cent
    .../mine/MODEL/day-2026-01-15/0/42      request 42 of that day, see `data_prep.generate.quota.rate_limit`
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

_FOLDER = 1000  # pieces in one folder
_ROUNDING = 1e-9  # relative error of sums of floats, far below a piece


def claim(path: Path) -> bool:
    """Create the folder ``path``; True for exactly one caller on all nodes.

    mkdir is decided by the file server, also on NFS, where neither locks nor listings can be trusted.
    """
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return claim(path)
    return True


class SharedAllowance:
    """A fixed amount that all tasks share. A claimed piece is never given back to other tasks.

    Args:
        folder: the same for every task.
        amount: the whole; may be infinite.
        sizes: (size, count) of the pieces, in the order in which they are claimed.
    """

    def __init__(self, folder: Path, amount: float, sizes: Sequence[tuple[float, int]]) -> None:
        self._folder, self._sizes, self._pieces = folder, sizes, 0
        for size, count in sizes:
            whole = count if amount >= size * count else int(amount / size + _ROUNDING)
            self._pieces += whole
            amount -= whole * size
            if whole < count:
                break
        self._available = 0.0  # claimed by this task and not reserved
        self._next = -1
        self._excess = 0.0  # what was claimed beyond the amount, when it was larger
        self._lock = threading.Lock()

    @property
    def available(self) -> float:
        """What this task has claimed, and neither reserved nor used."""
        return self._available

    def reserve(self, amount: float) -> bool:
        """Take ``amount``; False where less than that is left."""
        with self._lock:
            if self._next < 0:
                self._next = self._first_free()
                if self._next > self._pieces:
                    self._excess = sum(map(self._size, range(self._pieces, self._next)))
            while self._available - self._excess < amount - 1e-12:
                while self._next < self._pieces and not claim(self._path(self._next)):
                    self._next += 1
                if self._next >= self._pieces:
                    return False
                self._available += self._size(self._next)
                self._next += 1
            self._available -= amount
            return True

    def release(self, amount: float) -> None:
        """Return what was reserved and not used to this task; a negative amount where more was used."""
        with self._lock:
            self._available += amount

    def _size(self, number: int) -> float:
        for size, count in self._sizes:
            if number < count:
                return size
            number -= count
        raise AssertionError("piece out of range")

    def _path(self, number: int) -> Path:
        return self._folder / str(number // _FOLDER) / str(number % _FOLDER)

    def _first_free(self) -> int:
        """Where to start claiming, by bisection: pieces are claimed in order.

        Another node's claim may be visible late, so a piece that looks free may be taken; `claim` notices.
        """
        low, high = 0, sum(count for _, count in self._sizes)  # a larger amount may have been allowed before
        while low < high:
            middle = (low + high) // 2
            if self._path(middle).is_dir():
                low = middle + 1
            else:
                high = middle
        return low
