"""The quota of a Google project, for all tasks of all runs that use it: no server, no locks, no knowledge of each other.

Time is cut into numbered *slots*. At 600 requests a minute slot n begins at second ``n * 0.1025`` of the epoch, and allows
one request. A task claims a slot by creating the folder of its number (`data_prep.generate.quota.allowance.claim`). A slot whose
task died is lost; it is never used twice, and nothing has to be cleaned up::

    ~/.cache/product-vqa/quota/mine/gemini-3.5-flash-lite/rate-600/29567124/17      slots, 64 to a folder
    ~/.cache/product-vqa/quota/mine/gemini-3.5-flash-lite/tokens-4000000-2048/...   slots of 2,048 tokens each
    ~/.cache/product-vqa/quota/mine/gemini-3.5-flash-lite/day-2026-01-15/0/42       the requests of a day

Tasks may start and end at any time: the next slot goes to whichever task asks first, and no task holds a slot that it is
not about to use.

Why no minute exceeds the quota: a request leaves at most `MAX_DELAY` seconds after its slot begins, and clocks of nodes are
assumed to agree within `CLOCK_SKEW`. With slots ``(60 + MAX_DELAY + 2 * CLOCK_SKEW) / quota`` seconds apart, no 60 seconds can
hold more requests than the quota. A request reserves the most tokens that it may take. What is left of a slot of tokens, and what
a request did not take, goes to the task's next requests, within `TOKEN_LIFETIME` seconds of the slot; their distance allows for
that. A request that took more than it had reserved leaves a debt, for which the task's next ones wait. The size of a slot does not
depend on the run, so that runs of one project share their tokens whatever they ask.

A clock that was set shows by comparison with the monotonic clock. The task then sends nothing for a minute. If the clock was
set back, the slots of that time are claimed already, so the task waits for new ones: slow, but never over the quota.
"""

from __future__ import annotations

import datetime
import shutil
import threading
import time
import urllib.parse
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.generate.clients.errors import DailyQuotaExhausted
from data_prep.generate.quota.allowance import SharedAllowance, claim
from data_prep.generate.settings import QuotaSettings
from data_prep.generate.waiting import sleep
from data_prep.outcomes import UserError

MAX_DELAY = 0.6  # seconds after its beginning that a slot may be used
CLOCK_SKEW = 0.4  # seconds that the clocks of two nodes may differ
TOKEN_LIFETIME = 12.0  # seconds after its beginning that tokens of a slot may be used: a few replies long
# A slot of tokens may have begun this many seconds before the request leaves; else each request would wait for its tokens.
_TOKEN_HEAD_START = 2.0
_FOLDER = 64  # slots in one folder
_SLOT_TOKENS = 2_048  # that one slot is worth
_LARGE_REQUEST = 16_384  # tokens: three times what a request may take by default


class Clock:
    """Wall-clock time that notices when the clock was set."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def jumped(self) -> bool:
        """Whether the clock was set since the last call, by more than the slots allow for."""
        offset = time.time() - time.monotonic()
        jumped = abs(offset - self._offset) > CLOCK_SKEW
        if jumped:
            self._offset = offset
        return jumped


class RateLimitSlots:
    """At most ``per_minute`` a minute, over all tasks.

    Args:
        folder: of the project and model; every task uses the same.
        per_minute: the quota.
        cancelled: asked while looking for a free slot.
        lifetime: seconds after its beginning that a slot may be used.
    """

    def __init__(
        self, folder: Path, per_minute: int, cancelled: Callable[[], bool], lifetime: float = MAX_DELAY
    ) -> None:
        self._folder = folder
        self.spacing = (60 + lifetime + 2 * CLOCK_SKEW) / per_minute  # seconds
        self._cancelled = cancelled
        self._last = -1
        self._cleaned_at = 0.0  # monotonic

    def claim(self, after: float) -> float | None:
        """Claim the first free slot that begins later than ``after``; its beginning, or None when cancelled."""
        number = max(self._last + 1, int(after / self.spacing) + 1)
        while not claim(self._folder / str(number // _FOLDER) / str(number % _FOLDER)):
            if self._cancelled():
                return None
            number += 1
        self._last = number
        self._remove_old(number)
        return number * self.spacing

    def _remove_old(self, number: int) -> None:
        """Once a minute, remove slots of more than an hour ago; several tasks may do so at once."""
        if time.monotonic() - self._cleaned_at < 60:
            return
        self._cleaned_at = time.monotonic()
        oldest = number // _FOLDER - max(100, int(3600 / self.spacing / _FOLDER))
        for folder in list(self._folder.iterdir()):
            if folder.name.isdigit() and int(folder.name) < oldest:
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that a request may take."""

    slot: float  # beginning of the slot that they come from
    tokens: int
    due: float  # when the request may leave


def _slot_size(per_minute: int, max_request_tokens: int) -> int:
    """Tokens of a slot: the same for all runs, but for those whose requests may take a large part of a minute's tokens."""
    size = _LARGE_REQUEST
    while size < max_request_tokens:
        size *= 4
    # Several slots for one request must begin within TOKEN_LIFETIME. Where they cannot, one slot holds a whole request.
    return _SLOT_TOKENS if per_minute >= 8 * size else min(size, per_minute)


class TokenSlots:
    """Tokens per minute: a request reserves the most that it may take, and releases the rest.

    Args:
        folder, cancelled: see `RateLimitSlots`.
        per_minute: the quota, in tokens.
        max_request_tokens: the most that one request is expected to take.

    Raises:
        UserError: the quota is smaller than one request.
    """

    def __init__(self, folder: Path, per_minute: int, max_request_tokens: int, cancelled: Callable[[], bool]) -> None:
        if per_minute < max_request_tokens:
            raise UserError(
                f"generate.quota.tokens_per_minute is {per_minute:,}, but one request may take {max_request_tokens:,}. "
                f"Lower generate.max_output_tokens, or ask Google for a larger quota."
            )
        self._size = _slot_size(per_minute, max_request_tokens)
        self._most = max_request_tokens
        slots = folder / f"tokens-{per_minute}-{self._size}"
        self._slots = RateLimitSlots(slots, per_minute // self._size, cancelled, TOKEN_LIFETIME)
        self._unused: list[tuple[float, int]] = []  # (beginning of a slot, tokens of it that nobody has reserved)
        self._debt = 0  # tokens that requests took beyond what they had reserved
        self._lock = threading.Lock()

    def reserve(self, at: float) -> Reservation | None:
        """Reserve tokens for a request that leaves at ``at`` or later; None when cancelled."""
        with self._lock:
            self._unused = sorted(entry for entry in self._unused if entry[0] + TOKEN_LIFETIME - MAX_DELAY >= at)
            while sum(tokens for _, tokens in self._unused) < self._debt + self._most:
                begin = self._slots.claim(at - _TOKEN_HEAD_START)
                if begin is None:
                    return None
                # Tokens that expired while others were claimed only make the request wait longer.
                self._unused.append((begin, self._size))
            self._take(self._debt)
            self._debt = 0
            first, last = self._unused[0][0], self._take(self._most)
            return Reservation(first, self._most, last)

    def _take(self, tokens: int) -> float:
        """Use up the oldest tokens; the beginning of the last slot that was touched."""
        slot = self._unused[0][0]
        while tokens > 0:
            slot, available = self._unused.pop(0)
            tokens -= available
        if tokens < 0:
            self._unused.insert(0, (slot, -tokens))
        return slot

    def settle(self, reservation: Reservation, used: int) -> None:
        """Release what a request did not take of its reservation, or owe what it took beyond it."""
        with self._lock:
            if used > reservation.tokens:
                self._debt += used - reservation.tokens
                self._most = min(max(self._most, used), self._size)  # the next ones may be as large
            else:
                self._unused.append((reservation.slot, reservation.tokens - used))


def limits_folder(quota_folder: Path, project: str, model: str) -> Path:
    """Where the tasks of all runs share the limits of a project, which Google sets for each model.

    Args:
        quota_folder: ``generate.quota_folder``.
        project, model: their names.
    """
    return (
        quota_folder / urllib.parse.quote(project, safe="") / urllib.parse.quote(model.removeprefix("models/"), safe="")
    )


class ProjectQuota:
    """All limits of one project and model: requests and tokens per minute, requests per day.

    Args:
        folder: see `limits_folder`.
        project: its name.
        settings: the limits.
        cancelled: ends a wait when it becomes true.
        max_request_tokens: the most that one request is expected to take, in and out.

    Raises:
        UserError: one request may take more tokens than a minute has.
    """

    def __init__(
        self,
        folder: Path,
        project: str,
        settings: QuotaSettings,
        cancelled: Callable[[], bool],
        max_request_tokens: int = 1,
    ) -> None:
        self._folder, self._project, self._settings = folder, project, settings
        self._cancelled = cancelled
        self._requests: RateLimitSlots | None = None
        self._tokens: TokenSlots | None = None
        if rate := settings.requests_per_minute:
            self._requests = RateLimitSlots(folder / f"rate-{rate}", rate, cancelled)
        if rate := settings.tokens_per_minute:
            self._tokens = TokenSlots(folder, rate, max_request_tokens, cancelled)
        self._today: tuple[datetime.date, SharedAllowance] | None = None
        self._clock = Clock()
        self._lock = threading.Lock()

    def wait(self) -> Reservation | None:
        """Wait until one request may be sent.

        Returns:
            The reservation, for `settle`; None when cancelled.

        Raises:
            DailyQuotaExhausted: no more requests today.
        """
        # One thread of a task waits at a time: a task never holds slots that another task could use earlier.
        with self._lock:
            if limit := self._settings.requests_per_day:
                today, allowance = self._day(limit)
                if not allowance.reserve(1):
                    raise DailyQuotaExhausted(f"project {self._project}: all {limit:,} requests of {today} are used")
            if not self._requests and not self._tokens:
                return Reservation(0.0, 0, 0.0)
            return self._wait_for_slots()

    def _day(self, limit: int) -> tuple[datetime.date, SharedAllowance]:
        """The present day, by which Google counts, and its requests."""
        today = pacific_time(self._clock.now()).date()
        if self._today is None or self._today[0] != today:
            for folder in self._folder.glob("day-*"):
                if folder.name < f"day-{today - datetime.timedelta(days=2)}":
                    shutil.rmtree(folder, ignore_errors=True)  # several tasks may do so at once
            self._today = today, SharedAllowance(self._folder / f"day-{today}", limit, ((1, limit),))
        return self._today

    def _wait_for_slots(self) -> Reservation | None:
        at = self._clock.now()
        while not self._cancelled():
            request = self._requests.claim(at) if self._requests else at
            if request is None:
                return None
            tokens = self._tokens.reserve(request) if self._tokens else Reservation(request, 0, request)
            if tokens is None:
                return None
            due = max(request, tokens.due)
            jumped = self._clock.jumped()
            # Half of MAX_DELAY is for the wait, half for the time until the request has left.
            if not jumped and (self._requests is None or due <= request + MAX_DELAY / 2):
                if not self._sleep_until(due):
                    return None
                jumped = self._clock.jumped()
                if not jumped and self._clock.now() <= due + MAX_DELAY / 2:
                    return tokens
            if jumped:
                print("the clock was set: pausing requests for a minute to stay within the quota", flush=True)
                if not self._sleep_until(self._clock.now() + 60 + TOKEN_LIFETIME + CLOCK_SKEW):
                    return None
            elif self._tokens:  # the request's slot has passed; the tokens are good for some seconds more
                self._tokens.settle(tokens, 0)
            at = max(self._clock.now(), due if not jumped else 0.0)
        return None

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Say what a request took. Without this call it counts as the largest one that is expected."""
        if self._tokens:
            self._tokens.settle(reservation, tokens)

    def _sleep_until(self, due: float) -> bool:
        """Sleep, by the monotonic clock; False when cancelled."""
        return sleep(due - self._clock.now(), self._cancelled)


def pacific_time(at: float) -> datetime.datetime:
    """A time (seconds since the epoch) where Google counts days."""
    return datetime.datetime.fromtimestamp(at, zoneinfo.ZoneInfo("America/Los_Angeles"))


def next_day(at: float) -> datetime.datetime:
    """When the daily quota is renewed: the next midnight Pacific time after ``at``, in UTC."""
    now = pacific_time(at)
    midnight = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time(), now.tzinfo)
    return midnight.astimezone(datetime.UTC)
