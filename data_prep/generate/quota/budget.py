"""The cap of a run in dollars, kept by all of its tasks and launches; see `data_prep.generate.quota.allowance` for how.

The pieces are claimed whether or not there is a cap, so that one which is set later knows what was spent before.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path

from data_prep.generate.quota.allowance import SharedAllowance
from data_prep.generate.quota.spending import SpendingLog, take_leftovers
from data_prep.outcomes import UserError

# (dollars, how many) of the pieces, in this order for every cap: raising the cap only adds pieces, so what was spent stays
# spent. The first are small, as a task that is killed loses the rest of its piece; later ones are larger, as each is a folder.
_PIECES = ((0.001, 10_000), (0.01, 9_000), (0.1, 10**9))


class BudgetExhausted(UserError):
    """The next request could exceed the cap."""


class Budget:
    """What a run may spend, over all tasks and launches, and a record of what it did spend.

    A request reserves the most that it can cost before it is sent; what it did not cost goes to the task's next request, and
    in the end to the next task. A request of a task that was killed counts with all that it had reserved.

    Args:
        ledger: the run's.
        cap: dollars; None: no cap.
    """

    def __init__(self, ledger: Path, cap: float | None) -> None:
        self._ledger, self._cap = ledger, cap
        self._allowance = SharedAllowance(ledger / "dollars", math.inf if cap is None else cap, _PIECES)
        self._log = SpendingLog(ledger)
        self._in_flight: dict[int, float] = {}  # dollars that were reserved, by request
        self._began = False
        self._change = threading.Condition()

    def reserve_request(self, dollars: float) -> int:
        """Reserve the most that one request can cost; wait while requests in flight may still release enough.

        Returns:
            The request's number, for `settle_request`.

        Raises:
            BudgetExhausted: the request could exceed the cap.
        """
        with self._change:
            while not self.reserve(dollars):
                if not self._in_flight:
                    raise BudgetExhausted(
                        f"The budget of ${self._cap:g} is spent: one more request could exceed it. All replies so far are "
                        f"on disk. Raise generate.max_dollars to continue."
                    )
                self._change.wait(1.0)
            request = self._log.reserve(dollars)
            self._in_flight[request] = dollars
            return request

    def settle_request(self, request: int, paid: float) -> None:
        """Write down what a request cost, and release the rest."""
        with self._change:
            self._log.settle(request, paid)
            self._allowance.release(self._in_flight.pop(request) - paid)
            self._change.notify()

    def reserve(self, dollars: float) -> bool:
        """Reserve an amount without waiting; False where it could exceed the cap."""
        with self._change:
            if not self._began:
                self._began = True
                self._allowance.release(take_leftovers(self._ledger))
        return self._allowance.reserve(dollars)

    def release(self, dollars: float) -> None:
        """Return what was reserved and not spent."""
        self._allowance.release(dollars)

    def close(self) -> None:
        """Leave what this task does not need any more to the next one."""
        with self._change:
            self._log.close(self._allowance.available)
