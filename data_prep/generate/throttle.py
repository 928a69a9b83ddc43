"""How many requests are in flight: fewer when the server says 429, more again when it does not.

On the first 429 of a burst the limit is multiplied by 0.75; after 25 successes it grows by one. A burst is what was in flight
when the limit was last reduced: its other 429s say nothing new.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SHRINK, _SUCCESSES = 0.75, 25


class Throttle:
    """One state per project.

    Args:
        limit: requests in flight at most.
        cancelled: asked while waiting.
    """

    def __init__(self, limit: int, cancelled: Callable[[], bool]) -> None:
        self._most, self.limit = limit, float(limit)
        self._cancelled = cancelled
        self._in_flight = 0
        self._successes = 0
        self._reduced_at = 0.0
        self._not_before = 0.0
        self._change = threading.Condition()

    def enter(self) -> float | None:
        """Wait for a place; when it was given (monotonic), or None when cancelled."""
        with self._change:
            while not self._cancelled():
                pause = self._not_before - time.monotonic()
                if pause <= 0 and self._in_flight < max(1, int(self.limit)):
                    self._in_flight += 1
                    return time.monotonic()
                self._change.wait(min(max(pause, 0.05), 0.5))
        return None

    def leave(self) -> None:
        """Give the place back."""
        with self._change:
            self._in_flight -= 1
            self._change.notify()

    def succeeded(self) -> None:
        """Count a success."""
        with self._change:
            self._successes += 1
            if self._successes >= _SUCCESSES and self.limit < self._most:
                self._successes = 0
                self.limit = min(self._most, self.limit + 1)
                self._change.notify()

    def throttled(self, entered: float, delay: float) -> None:
        """Take a 429 into account, of a request that entered at ``entered``; nothing is sent for ``delay`` seconds."""
        with self._change:
            now = time.monotonic()
            if entered > self._reduced_at:
                self.limit = max(1.0, self.limit * _SHRINK)
                self._reduced_at = now
            self._successes = 0
            self._not_before = max(self._not_before, now + delay)
