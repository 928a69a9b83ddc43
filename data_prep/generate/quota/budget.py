"""Amounts that all tasks of a run share (dollars, a day's requests), without a server and without locks.

An amount is cut into numbered pieces. A task claims a piece by creating the folder of its number::

    3_generate/quota/dollars/0/42                   piece 42 of the budget, a tenth of a cent
    3_generate/quota/mine/day-2026-01-15/0/42       request 42 of that day
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from data_prep.outcomes import UserError

# (dollars, how many) of the budget's pieces, in this order for every cap: raising the cap only adds pieces, so what was
# spent stays spent. The first are small, as a task that ends loses the rest of its piece; later ones are larger, as each
# is a folder.
_BUDGET_PIECES = ((0.001, 10_000), (0.01, 9_000), (0.1, 10**9))
_FOLDER = 1000  # pieces in one folder
_ROUNDING = 1e-9  # relative error of sums of floats, far below a piece


class BudgetExhausted(UserError):
    """The next request could exceed the cap."""


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
        amount: the whole.
        sizes: (size, count) of the pieces, in the order in which they are claimed.
    """

    def __init__(self, folder: Path, amount: float, sizes: Sequence[tuple[float, int]]) -> None:
        self._folder, self._sizes, self._pieces = folder, sizes, 0
        for size, count in sizes:
            whole = min(count, int(amount / size + _ROUNDING))
            self._pieces += whole
            amount -= whole * size
            if whole < count:
                break
        self._available = 0.0  # claimed by this task and not reserved
        self._next = -1
        self._lock = threading.Lock()

    def reserve(self, amount: float) -> bool:
        """Take ``amount``; False where less than that is left."""
        with self._lock:
            if self._next < 0:
                self._next = self._first_free()
            while self._available < amount - 1e-12:
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
        low, high = 0, self._pieces
        while low < high:
            middle = (low + high) // 2
            if self._path(middle).is_dir():
                low = middle + 1
            else:
                high = middle
        return low


class Budget:
    """A hard cap in dollars over all tasks and restarts of a run.

    A request reserves the most that it can cost before it is sent; what it did not cost goes to the task's next request.

    Args:
        folder: ``3_generate/quota``.
        cap: dollars; None: no cap.
    """

    def __init__(self, folder: Path, cap: float | None) -> None:
        self._cap, self.capped = cap, cap is not None
        self._allowance = SharedAllowance(folder / "dollars", cap or 0.0, _BUDGET_PIECES) if self.capped else None
        self._in_flight = 0
        self._change = threading.Condition()

    def reserve_request(self, dollars: float) -> None:
        """Reserve the most that one request can cost; wait while requests in flight may still release enough.

        Raises:
            BudgetExhausted: the request could exceed the cap.
        """
        if self._allowance is None:
            return
        with self._change:
            while not self._allowance.reserve(dollars):
                if self._in_flight == 0:
                    raise BudgetExhausted(
                        f"The budget of ${self._cap:g} is spent: one more request could exceed it. All replies so far are "
                        f"on disk. Raise generate.max_dollars to continue."
                    )
                self._change.wait(1.0)
            self._in_flight += 1

    def settle_request(self, reserved: float, paid: float) -> None:
        """Release what a request did not cost."""
        if self._allowance is None:
            return
        with self._change:
            self._in_flight -= 1
            self._allowance.release(reserved - paid)
            self._change.notify()

    def reserve(self, dollars: float) -> bool:
        """Reserve an amount without waiting; False where it could exceed the cap."""
        return self._allowance is None or self._allowance.reserve(dollars)

    def release(self, dollars: float) -> None:
        """Return what was reserved and not spent."""
        if self._allowance is not None:
            self._allowance.release(dollars)
