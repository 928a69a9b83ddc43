"""Two circuit breakers: they end a task before it pays for replies of no use, or waits for a server that is not coming back.

`Outage` counts in one task, as failed requests cost nothing. `UsableReplies` counts over the whole run: until enough of its
first replies are known to be usable, no more than ten requests are under way in all tasks together. A request takes a *permit*
by creating the folder of its number, and writes into it what became of its reply::

    ledger/5be1c0ffee12/first-replies/3/             permit 3, whose request is under way
    ledger/5be1c0ffee12/first-replies/3/reply.json   {"problem": "eaten_by_thoughts", "dollars": 0.0026}; "" if usable
    ledger/5be1c0ffee12/first-replies/stopped.json   the breaker has tripped, and stays so for a relaunch

The digits are the fingerprint of the settings that decide the replies: under other settings the count starts anew.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import read_json, write_json
from data_prep.generate.clients.errors import FatalError, RetryableError
from data_prep.generate.quota.allowance import claim
from data_prep.generate.waiting import Cancelled, sleep

FIRST_REPLIES = 10
_LATEST = 20  # later replies in a row, of one task, of which none is usable
_LOOK_SECONDS = 0.2
_REMEDIES = {
    "eaten_by_thoughts": "The model spends its output tokens on thinking: raise generate.max_output_tokens, or lower "
    "generate.thinking",
    "cut_off": "The replies are longer than allowed: raise generate.max_output_tokens",
}
_ANY_REMEDY = "Look at the texts of the replies in 3_generate/shards/*/records.*.jsonl, and try another generate.model"


class Outage:
    """Whether every request of a task has failed for minutes.

    Args:
        minutes: that are waited for the server.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._since: float | None = None  # monotonic; the first failure after the last success
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """A request was answered."""
        with self._lock:
            self._since = None
            self._reasons.clear()

    def failed(self, error: RetryableError) -> None:
        """A request failed.

        Raises:
            FatalError: as all others did, for too long.
        """
        with self._lock:
            now = time.monotonic()
            self._since = self._since or now
            self._reasons[error.reason] += 1
            # A server that says when to come back is given a few of its own periods.
            patience = max(60 * self._minutes, 3 * (error.delay or 0.0))
            if now - self._since < patience:
                return
        raise self.error(str(error))

    def error(self, said: str) -> FatalError:
        """The error for the user; ``said``: the server's last words."""
        with self._lock:
            counted = ", ".join(f"{reason} {count:,}" for reason, count in self._reasons.most_common())
            waited = (time.monotonic() - (self._since or time.monotonic())) / 60
        return FatalError(
            f'Every request failed for {waited:.1f} minutes ({counted}). The server says: "{said}". No product was given up for '
            f"it: start again later, and the same command continues from here. generate.outage_minutes says how long to wait. "
            f"A 429 that does not pass is often a spending cap: look at https://ai.studio/spend."
        )


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to send one of the run's first requests."""

    folder: Path


class UsableReplies:
    """Whether the run's replies are of any use.

    Args:
        folder: ``ledger/<fingerprint>/first-replies``, shared by all tasks.
        min_usable: share of the first replies that must be usable; 0: do not look.
        patience: seconds after which a permit without a reply may be that of a task that was killed.
        cancelled: ends a wait when it becomes true.
    """

    def __init__(self, folder: Path, min_usable: float, patience: float, cancelled: Callable[[], bool]) -> None:
        self._folder, self._min_usable, self._patience = folder, min_usable, patience
        self._cancelled = cancelled
        self._passed = min_usable == 0
        self._next = 0  # permits below this number are taken
        self._spare: list[Permit] = []  # taken by this task; the request was not answered
        self._replies: dict[int, dict[str, object]] = {}  # known ones, by the permit's number
        self._latest: deque[str] = deque(maxlen=_LATEST)  # problems of this task's latest replies
        self._lock, self._door = threading.Lock(), threading.Lock()

    @property
    def undecided(self) -> bool:
        """Whether the first replies are not known yet."""
        return not self._passed

    def enter(self) -> Permit | None:
        """Wait until a request may be sent; its permit, if it is one of the first.

        Raises:
            UserError: the run's replies are of no use.
            Cancelled: the task is stopping.
        """
        with self._door:  # one thread of a task looks at the shared folder for all of them
            extra, started = 0, time.monotonic()
            while not self._cancelled():
                with self._lock:
                    if self._look():
                        return None
                    if self._spare:
                        return self._spare.pop()
                    while self._next < FIRST_REPLIES + extra:
                        folder = self._folder / str(self._next)
                        self._next += 1
                        if claim(folder):
                            return Permit(folder)
                sleep(_LOOK_SECONDS, self._cancelled)
                # Permits of tasks that were killed are replaced slowly: one for each time that a reply may take.
                extra = int((time.monotonic() - started) / self._patience)
        raise Cancelled

    def give_back(self, permit: Permit | None) -> None:
        """Return a permit whose request was not answered."""
        if permit is not None:
            with self._lock:
                self._spare.append(permit)

    def judge(self, permit: Permit | None, problem: str, dollars: float) -> None:
        """Count a reply that has been recorded.

        Args:
            permit: of its request.
            problem: why it is of no use; "" if it is usable.
            dollars: what it cost.

        Raises:
            UserError: the run's replies are of no use.
        """
        with self._lock:
            if permit is not None:
                write_json(permit.folder / "reply.json", {"problem": problem, "dollars": dollars})
            self._latest.append(problem)
            if self._min_usable == 0:
                return
            if not self._look():
                return
            if len(self._latest) == _LATEST and all(self._latest):
                self._stop(list(self._latest), None)

    def _look(self) -> bool:
        """Whether the first replies have passed."""
        if self._passed:
            return True
        if stopped := read_json(self._folder / "stopped.json"):
            raise FatalError(str(stopped["message"]))
        number = 0
        while number in self._replies or (self._folder / str(number)).is_dir():
            if number not in self._replies and (reply := read_json(self._folder / str(number) / "reply.json")):
                self._replies[number] = reply
            number += 1
        problems = [str(reply["problem"]) for reply in self._replies.values()]
        usable = problems.count("")
        if usable >= self._min_usable * FIRST_REPLIES:
            self._passed = True
        elif len(problems) - usable > (1 - self._min_usable) * FIRST_REPLIES:
            self._stop(problems, sum(float(str(reply["dollars"])) for reply in self._replies.values()))
        return self._passed

    def _stop(self, problems: list[str], dollars: float | None) -> None:
        counted = Counter(problem for problem in problems if problem)
        (worst, _), *_ = counted.most_common()
        reasons = ", ".join(f"{problem} {count}" for problem, count in counted.most_common())
        paid = f" for ${dollars:.4f}" if dollars else ""
        refused = any(problem.startswith(("blocked", "finished_")) for problem in counted)
        given_up = (
            "Only the products that the model refuses count as failed" if refused else "No product was given up for it"
        )
        message = (
            f"Stopped: {len(problems)} answered{paid}, {problems.count('')} usable ({reasons}). "
            f"{_REMEDIES.get(worst, _ANY_REMEDY)}, with another --run-dir. {given_up}. The same command sends nothing more; "
            f"with generate.min_usable=0 it goes on regardless."
        )
        write_json(self._folder / "stopped.json", {"message": message})
        raise FatalError(message)
