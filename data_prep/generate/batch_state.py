"""What is on disk about batches: numbered folders that all tasks of the run share.

Every step is written down before the next is taken, so that a task that is killed leaves a batch that another can take over::

    ledger/batches/12/batch.json      what is about to be submitted: title, project, settings, products, most dollars
    ledger/batches/12/job.json        the server's name of the batch, once it was created
    ledger/batches/12/results.jsonl   the server's results, unparsed
    ledger/batches/12/finished.json   how it ended and what it cost; the server is not asked about it any more
    ledger/batches/12/settled         a folder: one task has returned to the budget what the batch did not cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.files import AtomicFile, read_bytes, read_json, write_json
from data_prep.generate.clients.base import BatchClient, RawReply
from data_prep.generate.clients.errors import RetryableError
from data_prep.generate.quota.allowance import claim
from data_prep.generate.quota.spending import Spent
from data_prep.generate.waiting import Cancelled, sleep
from data_prep.records import from_dict

NEVER_CREATED = "never_created"  # the state of a batch that the server never accepted
_CLAIM_PAUSE = 0.2  # seconds until another task's claim is looked for again


@dataclass(frozen=True, slots=True)
class Intent:
    """A batch that is about to be submitted: the contents of batch.json."""

    title: str  # unique: the server is searched for it where the answer to the creation was lost
    project: str
    at: float  # when it was submitted, seconds since the epoch
    reserved: float  # dollars of the budget
    settings: dict[str, object]  # that decide the replies, see `data_prep.generate.prompt.identity`
    asked: dict[str, int]  # by item id: how many replies the product had before
    made_from: dict[str, str]  # by item id: the digest of the content that was shown


@dataclass
class Batch:
    """One numbered folder, and what this task learned about the batch from the server."""

    folder: Path
    intent: Intent
    job: str | None = None  # the server's name of it
    state: str = ""  # how it ended: succeeded, failed, expired, gone, never_created, ...; "" while it is under way
    collected: bool = False  # this task has recorded its results
    polled_at: float = -1e9  # monotonic
    unconfirmed: RetryableError | None = None  # why this task does not know whether it was created
    missing_since: float | None = None  # monotonic; when the server first did not know it, or its results
    cancelled: bool = False

    def asks_about(self, items: Iterable[str]) -> bool:
        """Whether any of these products is in the batch."""
        return not self.intent.asked.keys().isdisjoint(items)

    def created(self, job: str) -> None:
        """Write down the server's name of the batch."""
        self.job, self.missing_since = job, None
        write_json(self.folder / "job.json", {"job": job})

    def finish(self, state: str, detail: str, paid: float | None) -> bool:
        """Write down how it ended and what it cost (None: unknown); True for the first of all tasks that do so."""
        self.state = state
        write_json(self.folder / "finished.json", {"state": state, "detail": detail, "paid": paid})
        return claim(self.folder / "settled")

    def save_results(self, lines: Iterable[bytes]) -> None:
        """Write the server's results as they are."""
        with AtomicFile(self.folder / "results.jsonl") as file:
            for line in lines:
                file.write(line)

    def results(self, client: BatchClient) -> dict[str, RawReply | Exception]:
        """By item id, the replies and errors of the results. A line that is torn or unknown counts as missing."""
        found: dict[str, RawReply | Exception] = {}
        for line in (read_bytes(self.folder / "results.jsonl") or b"").splitlines():
            result = decoded(client, line)
            if result is not None and not isinstance(found.get(result[0]), RawReply):
                found[result[0]] = result[1]
        return found


class BatchFolder:
    """All batches of a run.

    Args:
        path: ``ledger/batches``.
        patience: seconds until a claim without batch.json counts as that of a task that was killed.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._path, self._patience = path, patience
        self._numbered: list[Batch | None] = []  # None: a claim that came to nothing
        self._incomplete_since: float | None = None  # monotonic; the first claim without batch.json was seen

    @property
    def batches(self) -> list[Batch]:
        """Those that were read so far."""
        return [batch for batch in self._numbered if batch]

    def read(self) -> bool:
        """Read the batches that were added; whether every claimed number is known now."""
        # By number, not by listing: on a network file system a listing may be a minute old.
        while (folder := self._path / str(len(self._numbered))).is_dir():
            intent = read_json(folder / "batch.json")
            if intent is None:  # claimed a moment ago, or its task was killed in that moment
                self._incomplete_since = self._incomplete_since or time.monotonic()
                if time.monotonic() - self._incomplete_since < self._patience:
                    return False
                self._numbered.append(None)
            else:
                job = (read_json(folder / "job.json") or {}).get("job")
                state = (read_json(folder / "finished.json") or {}).get("state", "")
                self._numbered.append(Batch(folder, from_dict(Intent, intent), job, state))
            self._incomplete_since = None
        return True

    def claim(self, asked: Mapping[str, int], cancelled: Callable[[], bool]) -> Path | None:
        """The folder of the next number, created by this call; None where a new batch asks about one of the products.

        A number can only be claimed after every batch before it was read, so no product is in two batches.

        Raises:
            Cancelled: the task is stopping.
        """
        known = len(self._numbered)
        while not cancelled():
            if self.read():
                added = [batch for batch in self._numbered[known:] if batch and batch.state != NEVER_CREATED]
                if any(batch.asks_about(asked) for batch in added):
                    return None
                folder = self._path / str(len(self._numbered))
                if claim(folder):
                    return folder
            sleep(_CLAIM_PAUSE, cancelled)  # where the claim failed, the other task's folder may be visible later
        raise Cancelled

    def add(self, folder: Path, intent: Intent) -> Batch:
        """Write down a batch that is about to be submitted, in a folder that was claimed."""
        write_json(folder / "batch.json", intent)
        batch = Batch(folder, intent)
        self._numbered.append(batch)
        return batch

    def any_under_way(self, since: float) -> bool:
        """Whether any task has a batch, submitted later than ``since``, that has not finished."""
        # Other tasks' batches are not polled by this one: their end is read from disk.
        return any(
            not batch.state and batch.intent.at > since and not (batch.folder / "finished.json").is_file()
            for batch in self.batches
        )


@dataclass(frozen=True, slots=True)
class HandedIn:
    """A batch as its files show it, for who neither polls nor collects it."""

    folder: Path
    intent: Intent
    finished: bool
    paid: float | None  # dollars; None: not known (yet)

    def unrecorded(self, replies: Mapping[str, int]) -> list[str]:
        """The products whose reply is (or may still be) in the batch alone.

        Args:
            replies: how many each product has among the records.
        """
        lines = (read_bytes(self.folder / "results.jsonl") or b"").splitlines()
        answered = {key for line in lines if (key := _key(line))} if self.finished else self.intent.asked
        return [key for key, before in self.intent.asked.items() if key in answered and replies.get(key, 0) <= before]


def handed_in(path: Path) -> list[HandedIn]:
    """All batches of a run, by number.

    Args:
        path: ``ledger/batches``.
    """
    found = []
    folders = [entry for entry in path.iterdir() if entry.name.isdigit()] if path.is_dir() else []
    for folder in sorted(folders, key=lambda entry: int(entry.name)):
        if intent := read_json(folder / "batch.json"):
            end = read_json(folder / "finished.json")
            found.append(HandedIn(folder, from_dict(Intent, intent), end is not None, (end or {}).get("paid")))
    return found


def batches_spent(path: Path) -> Spent:
    """What all batches of a run have cost: each once, however often its end was noticed."""
    batches = handed_in(path)
    return Spent(
        sum(batch.paid for batch in batches if batch.paid is not None),
        sum(batch.intent.reserved for batch in batches if batch.paid is None),
    )


def products_under_way(path: Path) -> int:
    """How many products are in batches that have not finished."""
    return sum(len(batch.intent.asked) for batch in handed_in(path) if not batch.finished)


def _key(line: bytes) -> str:
    """The item id of a line of results; "" where it has none."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    key = fields.get("key") if isinstance(fields, dict) and "response" in fields else ""
    return key if isinstance(key, str) else ""


def decoded(client: BatchClient, line: bytes) -> tuple[str, RawReply | Exception] | None:
    """A line of results, or None where it is not one."""
    try:
        return client.decode(line)
    except ValueError:
        return None
