"""Adaptive concurrency: fewer requests in flight when the server answers 429, more again when it does not.

On the first 429 of a burst the limit is multiplied by 0.75; after 25 successes it grows by one. A burst is what was in flight
when the limit was last reduced: further 429s of those requests carry no new information.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SHRINK, _SUCCESSES = 0.75, 25
_LOOK_SECONDS = 0.5  # how soon a stop is noticed


class Throttle:
    """The requests in flight of one project.

    Args:
        limit: requests in flight at most.
        cancelled: ends a wait when it becomes true.
    """

    def __init__(self, limit: int, cancelled: Callable[[], bool]) -> None:
        self._max, self.limit = limit, float(limit)
        self._cancelled = cancelled
        self._in_flight = 0
        self._successes = 0
        self._reduced_at = 0.0  # monotonic
        self._not_before = 0.0  # monotonic
        self._change = threading.Condition()

    def enter(self) -> float | None:
        """Wait until a request may start; when it did (monotonic), or None when cancelled."""
        with self._change:
            while not self._cancelled():
                pause = self._not_before - time.monotonic()
                if pause <= 0 and self._in_flight < max(1, int(self.limit)):
                    self._in_flight += 1
                    return time.monotonic()
                self._change.wait(min(max(pause, 0.05), _LOOK_SECONDS))
        return None

    def leave(self) -> None:
        """Count a request as ended."""
        with self._change:
            self._in_flight -= 1
            self._change.notify()

    def succeeded(self) -> None:
        """Count a success."""
        with self._change:
            self._successes += 1
            if self._successes >= _SUCCESSES and self.limit < self._max:
                self._successes = 0
                self.limit = min(self._max, self.limit + 1)
                self._change.notify()

    def throttled(self, entered: float, delay: float) -> None:
        """Take a 429 of a request that entered at ``entered`` into account; send nothing for ``delay`` seconds."""
        with self._change:
            now = time.monotonic()
            if entered > self._reduced_at:
                self.limit = max(1.0, self.limit * _SHRINK)
                self._reduced_at = now
            self._successes = 0
            self._not_before = max(self._not_before, now + delay)
