"""Waiting that ends early when the task is asked to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from data_prep.generate.clients.errors import RetryableError

T = TypeVar("T")

_LOOK_SECONDS = 0.5  # how soon a stop is noticed: well within the grace time of any site


class Cancelled(Exception):
    """Shutting down, or another request failed fatally; this one was not sent."""


def sleep(seconds: float, cancelled: Callable[[], bool]) -> bool:
    """Sleep; False, and early, once ``cancelled``."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if cancelled():
            return False
        time.sleep(min(left, _LOOK_SECONDS))
    return True


def with_deadline(call: Callable[[], T], seconds: float, cancelled: Callable[[], bool] | None = None) -> T:
    """Return what ``call`` returns, within ``seconds``.

    Raises:
        RetryableError: it took longer.
        Cancelled: ``cancelled`` became true first.
    """
    # The libraries' timeouts count from byte to byte, so a server that sends one byte a second passes them all. A thread
    # cannot be killed: one whose call takes too long is abandoned, and being a daemon it does not outlive the task.
    outcome: list[Any] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)
        done.set()

    threading.Thread(target=run, daemon=True, name="request").start()
    end = time.monotonic() + seconds
    while not done.wait(min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
        if cancelled is not None and cancelled():
            raise Cancelled
        if time.monotonic() >= end:
            raise RetryableError("no answer in time", reason="timeout")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    result: T = outcome[0]
    return result
