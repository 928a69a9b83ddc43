"""One quota (and one budget) for all tasks of an array, without a server, without locks, without knowing who else runs.

A project's quota is cut into numbered *permits*. At 600 requests a minute permit n may be used from second ``n * 0.1025``
of the epoch on. A task takes a permit by making the folder of its name, and whoever makes it owns it: making a folder is
decided by the file server, also on NFS, and needs no listing, no modification time, no lock and no clean-up after a kill (a
permit of a task that died is lost, never used twice)::

    3_generate/quota/mine/rate-600/29567124/17      permits, in one folder for each 64 of them
    3_generate/quota/mine/day-2026-01-15/0/42       requests of a day
    3_generate/quota/dollars/0/42                   the budget, in tenths of a cent

Tasks come and go as they like: the permits are there for whoever asks next, and nobody holds more than it is about to use.

Why no minute ever has too many: requests leave within `LATE` seconds of their permit, and clocks of nodes are assumed to
agree within `SKEW`. With permits ``(60 + LATE + 2 * SKEW) / quota`` seconds apart, no 60 seconds can hold more than the quota.
A clock that jumps is noticed by comparing with the monotonic one: the task then sends nothing for a minute. Set back, it
finds the permits of that time taken and waits until new ones come: slow, never over.
"""

from __future__ import annotations

import datetime
import shutil
import threading
import time
import zoneinfo
from collections.abc import Callable
from pathlib import Path

from data_prep.generators.errors import DailyQuotaGone
from data_prep.records import UserError
from data_prep.settings_generate import QuotaSettings

LATE = 0.6  # seconds after its time that a permit may still be used
SKEW = 0.4  # seconds that the clocks of two nodes may differ
_FOLDER = 64  # permits in one folder
_PIECE = (
    0.001  # dollars that are taken from the budget at once; the same for every cap, so that raising it forgets nothing
)


class BudgetGone(UserError):
    """The next request could pass the cap."""


def take(path: Path) -> bool:
    """Whether this call, of all calls on all nodes, is the one that made the folder ``path``."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return take(path)
    return True


class Clock:
    """Wall-clock time that notices when the clock was set."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def jumped(self) -> bool:
        """Whether the clock was set since the last call, by more than the permits allow for."""
        ahead = time.time() - time.monotonic()
        jumped = abs(ahead - self._ahead) > SKEW
        if jumped:
            self._ahead = ahead
        return jumped


class Permits:
    """Requests per minute of one project.

    Args:
        folder: of the project; every task of the run uses the same.
        per_minute: what the quota allows.
        cancelled: asked while waiting; the wait ends when it says so.
    """

    def __init__(self, folder: Path, per_minute: float, cancelled: Callable[[], bool]) -> None:
        self._folder = folder / f"rate-{per_minute:g}"
        self.spacing = (60 + LATE + 2 * SKEW) / per_minute  # seconds
        self._clock = Clock()
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._last = -1
        self._tidied = 0.0
        self._debt = 0.0

    def wait(self) -> bool:
        """Take the next permit and wait for its time; False when cancelled. One thread of a task waits at a time, so that
        a task never holds permits that another could use earlier."""
        with self._lock:
            while self._debt >= 1:
                self._debt -= 1
                if self._next() is None:
                    return False
            while True:
                due = self._next()
                if due is None:
                    return False
                if self._clock.jumped():
                    print("the clock was set: no requests for a minute, so that no minute has too many", flush=True)
                    if not self._sleep_until(self._clock.now() + 60 + LATE + SKEW):
                        return False
                    continue
                if not self._sleep_until(due):
                    return False
                if self._clock.now() <= due + LATE / 2 and not self._clock.jumped():
                    return True

    def owe(self, permits: float) -> None:
        """Count a request as more than one (or as less), as its tokens were more than expected."""
        with self._lock:
            self._debt = max(0.0, self._debt + permits)

    def _next(self) -> float | None:
        number = max(self._last + 1, int(self._clock.now() / self.spacing) + 1)
        while not take(self._folder / str(number // _FOLDER) / str(number % _FOLDER)):
            if self._cancelled():
                return None
            number += 1
        self._last = number
        self._tidy(number)
        return number * self.spacing

    def _sleep_until(self, due: float) -> bool:
        """Sleep by the monotonic clock, waking to see whether it was cancelled."""
        end = time.monotonic() + due - self._clock.now()
        while (left := end - time.monotonic()) > 0:
            if self._cancelled():
                return False
            time.sleep(min(left, 0.5))
        return True

    def _tidy(self, number: int) -> None:
        """Now and then remove permits of long ago, a hundred folders back; several tasks may do so at once."""
        if time.monotonic() - self._tidied < 60:
            return
        self._tidied = time.monotonic()
        oldest = number // _FOLDER - max(100, int(3600 / self.spacing / _FOLDER))
        for folder in list(self._folder.iterdir()):
            if folder.name.isdigit() and int(folder.name) < oldest:
                shutil.rmtree(folder, ignore_errors=True)


class Pieces:
    """A fixed amount that all tasks share, taken in numbered pieces and never given back.

    Args:
        folder: the same for every task.
        amount: the whole.
        piece: what is taken at once; what is left of it is lost with its task.
    """

    def __init__(self, folder: Path, amount: float, piece: float) -> None:
        self._folder, self._piece, self._pieces = folder, piece, int(amount / piece + 1e-9)
        self._have = 0.0
        self._next = -1
        self._lock = threading.Lock()

    def draw(self, amount: float) -> bool:
        """Take ``amount``; False where it is not there any more (nothing is taken then)."""
        with self._lock:
            if self._next < 0:
                self._next = self._first_free()
            while self._have < amount - 1e-12:
                while self._next < self._pieces and not take(self._path(self._next)):
                    self._next += 1
                if self._next >= self._pieces:
                    return False
                self._next += 1
                self._have += self._piece
            self._have -= amount
            return True

    def _path(self, number: int) -> Path:
        return self._folder / str(number // 1000) / str(number % 1000)

    def _first_free(self) -> int:
        """Where to start trying, found by halving: pieces are taken in order. One that looks free may be taken all the same
        (another node sees it late), which `take` finds out."""
        low, high = 0, self._pieces
        while low < high:
            middle = (low + high) // 2
            if self._path(middle).is_dir():
                low = middle + 1
            else:
                high = middle
        return low

    def give_back(self, amount: float) -> None:
        """Put back what was drawn and not used, for this task's next draw; less than nothing, where more was used."""
        with self._lock:
            self._have += amount


class ProjectQuota:
    """Everything that limits one project: minute and day.

    Args:
        folder: ``3_generate/quota``.
        project: its name.
        settings: the limits.
        cancelled: see `Permits`.
    """

    def __init__(self, folder: Path, project: str, settings: QuotaSettings, cancelled: Callable[[], bool]) -> None:
        self._folder, self._project, self._settings = folder / project, project, settings
        rates: list[float] = [settings.requests_per_minute] if settings.requests_per_minute else []
        if settings.tokens_per_minute:
            rates.append(settings.tokens_per_minute / settings.expected_tokens)
        self._permits = Permits(self._folder, min(rates), cancelled) if rates else None
        self._days: dict[datetime.date, Pieces] = {}
        self._lock = threading.Lock()

    def wait(self) -> bool:
        """Wait until one request may be sent; False when cancelled.

        Raises:
            DailyQuotaGone: not today any more.
        """
        if limit := self._settings.requests_per_day:
            today = pacific_now().date()
            with self._lock:
                day = self._days.setdefault(today, Pieces(self._folder / f"day-{today}", limit, 1))
            if not day.draw(1):
                raise DailyQuotaGone(f"project {self._project}: all {limit:,} requests of {today} are used")
        return self._permits.wait() if self._permits else True

    def used(self, tokens: int) -> None:
        """Tell how many tokens a request cost; one that cost more than expected delays those that follow."""
        limit = self._settings
        if self._permits and limit.tokens_per_minute:
            by_requests = limit.requests_per_minute or float("inf")
            if limit.tokens_per_minute / limit.expected_tokens <= by_requests or tokens > limit.expected_tokens:
                self._permits.owe(tokens / limit.expected_tokens - 1)


def pacific_now() -> datetime.datetime:
    """The time by which Google's days are counted."""
    try:
        zone: datetime.tzinfo = zoneinfo.ZoneInfo("America/Los_Angeles")
    except zoneinfo.ZoneInfoNotFoundError:  # a slim container without time zones: an hour late in summer, never early
        zone = datetime.timezone(datetime.timedelta(hours=-8))
    return datetime.datetime.now(zone)


def next_day() -> datetime.datetime:
    """When the daily quota is there again: midnight Pacific, in UTC."""
    now = pacific_now()
    midnight = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time(), now.tzinfo)
    return midnight.astimezone(datetime.UTC)


class Budget:
    """The hard cap in dollars, over all tasks and restarts of a run. None: no cap.

    A request is paid for in advance as if it were the dearest possible; what it did not cost goes to the task's next one.
    """

    def __init__(self, folder: Path, cap: float | None, dearest: float) -> None:
        self._cap, self._dearest = cap, dearest
        self._pieces = Pieces(folder / "dollars", cap, _PIECE) if cap and dearest > 0 else None
        self._in_flight = 0
        self._change = threading.Condition()

    def reserve(self) -> None:
        """Set the dearest possible request aside, waiting for what the task's other requests give back.

        Raises:
            BudgetGone: that could pass the cap.
        """
        if self._pieces is None:
            return
        with self._change:
            while not self._pieces.draw(self._dearest):
                if self._in_flight == 0:
                    raise BudgetGone(
                        f"The budget of ${self._cap:g} is spent, or so nearly that one more request could pass it. What was "
                        f"answered is on disk. Raise generate.max_dollars to go on."
                    )
                self._change.wait(1.0)
            self._in_flight += 1

    def settle(self, dollars: float) -> None:
        """Put back what a request did not cost (all of it, where nothing was answered)."""
        if self._pieces is None:
            return
        with self._change:
            self._in_flight -= 1
            self._pieces.give_back(self._dearest - dollars)
            self._change.notify()
