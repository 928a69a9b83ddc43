"""One quota (and one budget) for all tasks of an array, without a server, without locks, without knowing who else runs.

A project's quota is cut into numbered *permits*. At 600 requests a minute permit n may be used from second ``n * 0.1025``
of the epoch on. A task takes a permit by making the folder of its name, and whoever makes it owns it: making a folder is
decided by the file server, also on NFS, and needs no listing, no modification time, no lock and no clean-up after a kill (a
permit of a task that died is lost, never used twice)::

    3_generate/quota/mine/rate-600/29567124/17      permits, in one folder for each 64 of them
    3_generate/quota/mine/day-2026-01-15/0/42       requests of a day
    3_generate/quota/dollars/0/42                   the budget, in tenths of a cent at first

Tasks come and go as they like: the permits are there for whoever asks next, and nobody holds more than it is about to use.

Why no minute ever has too many: requests leave within `LATE` seconds of their permit, and clocks of nodes are assumed to
agree within `SKEW`. With permits ``(60 + LATE + 2 * SKEW) / quota`` seconds apart, no 60 seconds can hold more than the quota.
Tokens are permits too, each worth the most that one request may take. What a request did not take goes to the task's next
requests within `HOLD` seconds of the permit's time, and the distance between permits allows for that.

A clock that jumps is noticed by comparing with the monotonic one: the task then sends nothing for a minute. Set back, it
finds the permits of that time taken and waits until new ones come: slow, never over.
"""

from __future__ import annotations

import datetime
import shutil
import threading
import time
import zoneinfo
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.generate.clients.errors import DailyQuotaGone
from data_prep.generate.settings import QuotaSettings
from data_prep.outcomes import UserError

LATE = 0.6  # seconds after its time that a permit may still be used
SKEW = 0.4  # seconds that the clocks of two nodes may differ
HOLD = 12.0  # seconds after its time that tokens of a permit may still be used: some replies long
_EARLIER = 2.0  # of those, how many may have passed when the permit is taken: else a request would wait for its tokens
_FOLDER = 64  # permits in one folder
# Dollars that are taken from the budget at once, by how many were taken before: the same for every cap, so that raising it
# forgets nothing. Small, as a task that ends loses what it has of one; larger further on, as each is a folder.
_PIECES = ((0.001, 10_000), (0.01, 9_000), (0.1, 10**9))


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
    """So many a minute, for all tasks together.

    Args:
        folder: of the project; every task of the run uses the same.
        per_minute: how many.
        cancelled: asked while looking for a free one.
        late: seconds after its time that a permit may still be used.
    """

    def __init__(self, folder: Path, per_minute: int, cancelled: Callable[[], bool], late: float = LATE) -> None:
        self._folder = folder
        self.spacing = (60 + late + 2 * SKEW) / per_minute  # seconds
        self._cancelled = cancelled
        self._last = -1
        self._tidied = 0.0

    def take(self, after: float) -> float | None:
        """Take the first free permit of later than ``after``; its time, or None when cancelled."""
        number = max(self._last + 1, int(after / self.spacing) + 1)
        while not take(self._folder / str(number // _FOLDER) / str(number % _FOLDER)):
            if self._cancelled():
                return None
            number += 1
        self._last = number
        self._tidy(number)
        return number * self.spacing

    def _tidy(self, number: int) -> None:
        """Now and then remove permits of long ago, a hundred folders back; several tasks may do so at once."""
        if time.monotonic() - self._tidied < 60:
            return
        self._tidied = time.monotonic()
        oldest = number // _FOLDER - max(100, int(3600 / self.spacing / _FOLDER))
        for folder in list(self._folder.iterdir()):
            if folder.name.isdigit() and int(folder.name) < oldest:
                shutil.rmtree(folder, ignore_errors=True)


class TokenPermits:
    """Tokens per minute: a request sets the most aside that it may take, and gives back what it did not.

    Args:
        folder, cancelled: see `Permits`.
        per_minute: the quota, in tokens.
        most: tokens that one request may take.

    Raises:
        UserError: the quota is smaller than one request.
    """

    def __init__(self, folder: Path, per_minute: int, most: int, cancelled: Callable[[], bool]) -> None:
        if per_minute < most:
            raise UserError(
                f"generate.quota.tokens_per_minute is {per_minute:,}, but one request may take {most:,}. Lower "
                f"generate.max_output_tokens, or ask for a larger quota."
            )
        self._most = most
        self._permits = Permits(folder, per_minute // most, cancelled, HOLD)
        self._left: list[tuple[float, int]] = []  # (time of its permit, tokens), what earlier requests did not take
        self._lock = threading.Lock()

    def reserve(self, at: float) -> float | None:
        """Set the most aside for a request that leaves at ``at`` or later; the time of the permit, or None when cancelled."""
        with self._lock:
            self._left = sorted(entry for entry in self._left if entry[0] + HOLD - LATE >= at)
            if sum(tokens for _, tokens in self._left) >= self._most:
                oldest, missing = self._left[0][0], self._most
                while missing > 0:
                    due, tokens = self._left.pop(0)
                    missing -= tokens
                if missing < 0:
                    self._left.insert(0, (due, -missing))
                return oldest
        return self._permits.take(at - _EARLIER)

    def settle(self, due: float, used: int) -> None:
        """Give back what a request did not take of what was set aside; less than nothing, where it took more."""
        with self._lock:
            self._left.append((due, self._most - used))


class Pieces:
    """A fixed amount that all tasks share, taken in numbered pieces and never given back.

    Args:
        folder: the same for every task.
        amount: the whole.
        sizes: what is taken at once, and how often, until the next size; what is left of a piece is lost with its task.
    """

    def __init__(self, folder: Path, amount: float, sizes: Sequence[tuple[float, int]]) -> None:
        self._folder, self._sizes, self._pieces = folder, sizes, 0
        for size, count in sizes:
            whole = min(count, int(amount / size + 1e-9))
            self._pieces += whole
            amount -= whole * size
            if whole < count:
                break
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
                self._have += self._size(self._next)
                self._next += 1
            self._have -= amount
            return True

    def _size(self, number: int) -> float:
        for size, count in self._sizes:
            if number < count:
                return size
            number -= count
        raise AssertionError("there are no such pieces")

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
        cancelled: asked while waiting; the wait ends when it says so.
        most_tokens: what one request may take, in and out.

    Raises:
        UserError: one request may take more tokens than a minute has.
    """

    def __init__(
        self, folder: Path, project: str, settings: QuotaSettings, cancelled: Callable[[], bool], most_tokens: int = 1
    ) -> None:
        self._folder, self._project, self._settings = folder / project, project, settings
        self._cancelled = cancelled
        self._requests: Permits | None = None
        self._tokens: TokenPermits | None = None
        if rate := settings.requests_per_minute:
            self._requests = Permits(self._folder / f"rate-{rate}", rate, cancelled)
        if rate := settings.tokens_per_minute:
            self._tokens = TokenPermits(self._folder / f"tokens-{rate}-{most_tokens}", rate, most_tokens, cancelled)
        self._days: dict[datetime.date, Pieces] = {}
        self._clock = Clock()
        self._lock = threading.Lock()

    def wait(self) -> float | None:
        """Wait until one request may be sent. One thread of a task waits at a time, so that a task never holds permits that
        another could use earlier.

        Returns:
            What `used` wants back; None when cancelled.

        Raises:
            DailyQuotaGone: not today any more.
        """
        with self._lock:
            if limit := self._settings.requests_per_day:
                today = pacific_now().date()
                day = self._days.setdefault(today, Pieces(self._folder / f"day-{today}", limit, ((1, limit),)))
                if not day.draw(1):
                    raise DailyQuotaGone(f"project {self._project}: all {limit:,} requests of {today} are used")
            if not self._requests and not self._tokens:
                return 0.0
            return self._wait()

    def _wait(self) -> float | None:
        at = self._clock.now()
        while not self._cancelled():
            request = self._requests.take(at) if self._requests else at
            tokens = self._tokens.reserve(at if request is None else request) if self._tokens else request
            if request is None or tokens is None:
                return None
            due = max(request, tokens)
            jumped = self._clock.jumped()
            if not jumped and (self._requests is None or due <= request + LATE / 2):
                if not self._sleep_until(due):
                    return None
                jumped = self._clock.jumped()
                if not jumped and self._clock.now() <= due + LATE / 2:
                    return tokens
            if jumped:
                print("the clock was set: no requests for a minute, so that no minute has too many", flush=True)
                if not self._sleep_until(self._clock.now() + 60 + HOLD + SKEW):
                    return None
            elif self._tokens:  # they are good for some seconds more; the other permit is not
                self._tokens.settle(tokens, 0)
            at = max(self._clock.now(), due if not jumped else 0.0)
        return None

    def used(self, permission: float, tokens: int) -> None:
        """Tell how many tokens a request took, so that the next may have the rest. Not told, it counts as the most."""
        if self._tokens:
            self._tokens.settle(permission, tokens)

    def _sleep_until(self, due: float) -> bool:
        """Sleep by the monotonic clock, waking to see whether it was cancelled."""
        end = time.monotonic() + due - self._clock.now()
        while (left := end - time.monotonic()) > 0:
            if self._cancelled():
                return False
            time.sleep(min(left, 0.5))
        return True


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
        self._pieces = Pieces(folder / "dollars", cap, _PIECES) if cap and dearest > 0 else None
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

    @property
    def capped(self) -> bool:
        """Whether what is set aside is taken from anything."""
        return self._pieces is not None

    def draw(self, dollars: float) -> bool:
        """Set an amount aside without waiting; False where it could pass the cap (nothing is taken then)."""
        return self._pieces is None or self._pieces.draw(dollars)

    def give_back(self, dollars: float) -> None:
        """Put back what was drawn and not spent."""
        if self._pieces is not None:
            self._pieces.give_back(dollars)

    def settle(self, dollars: float) -> None:
        """Put back what a request did not cost (all of it, where nothing was answered)."""
        if self._pieces is None:
            return
        with self._change:
            self._in_flight -= 1
            self._pieces.give_back(self._dearest - dollars)
            self._change.notify()
