"""Asking in batches: for half the price, by whoever can wait a day. Gemini's Batch API.

What was handed in is written down before it is handed in, in numbered folders that all tasks of the run share::

    3_generate/batches/12/batch.json      title, project, what was asked about
    3_generate/batches/12/job.json        the server's name of it
    3_generate/batches/12/results.jsonl   what came back, as it came
    3_generate/batches/12/over.json       how it ended; nothing about it is asked of the server any more

A task that starts reads them all. A batch that is under way is waited for, whoever handed it in; one without job.json is looked
for at the server by its title, and counts as never made when it is not there: so a kill at any moment neither loses a batch nor
hands it in twice. Whether a reply was taken over already is seen from the records of its item, as everywhere.

A number is claimed by making its folder (see `data_prep.generate.rate_limit.take`), so each claim comes after a look at every batch
before it, even where a listing of the folder is a minute old on this node.
"""

from __future__ import annotations

import errno
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from data_prep.files import AtomicFile, write_json
from data_prep.generate import cost
from data_prep.generate.clients.base import BatchClient, RawReply
from data_prep.generate.clients.errors import Hopeless, ItemRefused, TryAgain, Unreachable
from data_prep.generate.dispatcher import Cancelled, Sender
from data_prep.generate.prompt import make_request, stored_reply, verdict
from data_prep.generate.rate_limit import Budget, take
from data_prep.generate.settings import GenerateSettings
from data_prep.images.decode import ImageProblem
from data_prep.outcomes import Emit, Failed, Ok, UserError
from data_prep.records import Product

_TRIES = 2  # batches that may fail an item before it is asked about one by one
_MAX_BYTES = 500_000_000  # of a batch's file; the API takes 2 GB
_TRANSFER_SECONDS = 1800.0  # that a file may take in either direction
# Time-outs of a request after which what is not there will never be. A request of another task arrives within one and has
# an effect within the next, and what a task wrote is seen late on another node: by a minute, the usual time-out.
_PATIENCE = 3


@dataclass
class _Batch:
    """One numbered folder, as far as it is known."""

    folder: Path
    title: str
    project: str
    at: float  # when it was handed in, seconds since the epoch
    reserved: float  # dollars that were set aside for it
    asked: dict[str, int]  # by item id, how many replies it had before
    job: str | None = None
    over: str = ""  # how it ended: succeeded, expired, void (never made), ...
    collected: bool = False
    polled: float = -1e9  # monotonic
    unheard: TryAgain | None = None  # why this task does not know whether it was made
    missing_since: float | None = None  # monotonic; when the server first did not know it, or its results
    cancelled: bool = False


@dataclass
class _Todo:
    """The items of this task that are not settled."""

    items: dict[str, Product]
    replies: dict[str, list[dict[str, Any]]]
    failures: Counter[str] = field(default_factory=Counter)  # batches that did not answer an item


class Batcher:
    """Asks about products in batches, as long as there are enough of them.

    Args:
        settings: of generation; ``settings.batch`` is set.
        sender: for its clients.
        budget: the run's.
        folder: ``3_generate/batches``.
        image_root: of the images.
        emit: takes the outcomes.
        stopping: whether the task was asked to stop.
    """

    def __init__(
        self,
        settings: GenerateSettings,
        sender: Sender,
        budget: Budget,
        folder: Path,
        image_root: Path,
        emit: Emit,
        stopping: Callable[[], bool],
    ) -> None:
        assert settings.batch is not None
        self._settings, self._batch = settings, settings.batch
        self._sender, self._budget, self._folder = sender, budget, folder
        self._image_root, self._emit, self._stopping = image_root, emit, stopping
        self._at_least = min(settings.batch.at_least, settings.batch.requests)
        self._patience = _PATIENCE * settings.timeout  # seconds
        self._batches: list[_Batch | None] = []  # by number; None for a claim that came to nothing
        self._unwritten_since: float | None = None  # monotonic; the first claim without batch.json was seen
        self._not_before = 0.0  # monotonic; the server takes no batches before
        self._refused = 0  # times in a row that it took none
        self._turn = 0

    def ask(self, items: Sequence[Product], previous: Mapping[str, list[dict[str, Any]]]) -> _Todo:
        """Hand in, wait, and emit what came back, until so few items are left that a batch is not worth its wait.

        Returns:
            What is to be asked one by one. When the task was asked to stop: what is not answered yet.

        Raises:
            UserError: no batch can succeed now.
        """
        todo = _Todo({item.item_id: item for item in items}, {key: list(found) for key, found in previous.items()})
        while todo.items and not self._stopping():
            self._read_folder()
            for batch in self._known(todo):
                if not batch.over and time.monotonic() - batch.polled >= self._batch.poll_seconds:
                    self._poll(batch)
                if batch.over and not batch.collected:
                    self._collect(batch, todo)
            under_way = [batch for batch in self._known(todo) if not batch.over]
            busy = {key for batch in under_way for key in batch.asked}
            ready = [key for key in todo.items if key not in busy and todo.failures[key] < _TRIES]
            if not under_way and len(ready) < self._at_least:
                break
            enough = self._batch.requests if under_way else self._at_least
            full = len(under_way) >= self._batch.at_once or time.monotonic() < self._not_before
            if len(ready) >= enough and not full:
                if self._hand_in(ready[: self._batch.requests], todo):
                    continue
                if not under_way:
                    break
            self._wait(under_way)
        return todo

    def _known(self, todo: _Todo) -> list[_Batch]:
        return [batch for batch in self._batches if batch and not batch.asked.keys().isdisjoint(todo.items)]

    def _read_folder(self) -> bool:
        """Read the batches that were added; whether all that are claimed are known now."""
        while (folder := self._folder / str(len(self._batches))).is_dir():
            intent = _read(folder / "batch.json")
            if intent is None:  # claimed a moment ago, or its task was killed in that moment
                self._unwritten_since = self._unwritten_since or time.monotonic()
                if time.monotonic() - self._unwritten_since < self._patience:
                    return False
                self._batches.append(None)
            else:
                batch = _Batch(folder, **intent)
                batch.job = (_read(folder / "job.json") or {}).get("job")
                batch.over = (_read(folder / "over.json") or {}).get("state", "")
                self._batches.append(batch)
            self._unwritten_since = None
        return True

    def _hand_in(self, keys: Sequence[str], todo: _Todo) -> bool:
        """Hand a batch in; False where the budget does not allow one."""
        title = f"product-vqa-{uuid.uuid4().hex[:12]}"
        project = self._sender.project_names[self._turn % len(self._sender.project_names)]
        self._turn += 1
        each = cost.dearest(self._settings) * self._batch.price
        if not self._budget.draw(each * len(keys)):
            return False
        kept = 0
        try:
            with tempfile.TemporaryFile() as file:
                asked = self._write(file, keys, todo)
                if len(asked) < self._at_least and any(key not in todo.items for key in keys):
                    return True  # images were missing, and are told: look again at what is left
                upload = self._manage(project, _uploading(file, title), _TRANSFER_SECONDS)
            folder = self._claim(asked)
            if folder is None:  # another attempt asks, or asked, about one of them
                return True
            kept = len(asked)
        except TryAgain as error:
            if isinstance(error, Unreachable) and not self._any_under_way():
                raise self._sender.cut_off(error) from error
            self._refuse(error)
            return True
        finally:
            self._budget.give_back(each * (len(keys) - kept))
        # Without a cap nothing was set aside, and nothing may come back from it where a cap is set later.
        batch = _Batch(folder, title, project, time.time(), each * kept if self._budget.capped else 0.0, asked)
        names = ("title", "project", "at", "reserved", "asked")
        write_json(folder / "batch.json", {name: getattr(batch, name) for name in names})
        self._batches.append(batch)
        try:
            batch.job = self._manage(project, lambda client: client.create_batch(upload, title), once=True)
        except TryAgain as error:
            if not error.throttled:
                # It may have been made all the same: it is looked for, by its title, before anything is asked again.
                print(f"{title}: no answer to its creation ({error}); looking for it", flush=True)
                batch.unheard = error
                return True
            self._end(batch, "void", str(error))
            self._refuse(error)
            return True
        except UserError as error:
            self._end(batch, "void", str(error))
            raise
        self._refused = 0
        write_json(folder / "job.json", {"job": batch.job})
        print(f"{title}: {len(asked):,} requests handed in as {batch.job}", flush=True)
        return True

    def _refuse(self, error: TryAgain) -> None:
        """Hand nothing in for a while, as the server took no batch.

        Raises:
            UserError: it took none for too long.
        """
        self._refused += 1
        if self._refused > self._settings.max_retries and not self._any_under_way():
            raise UserError(
                f"The server took no batch {self._refused} times in a row ({error}). Smaller ones may pass "
                f"(generate.batch.requests); or start again later, or without generate.batch at the full price."
            ) from error
        pause = min(600.0, self._batch.poll_seconds * 2 ** min(self._refused - 1, 10))
        self._not_before = time.monotonic() + (error.delay if error.delay is not None else pause)
        print(f"the server took no batch ({error}); the next is handed in later", flush=True)

    def _any_under_way(self) -> bool:
        """Whether any task has a batch whose end may make room for another."""
        since = time.time() - 3600 * self._batch.give_up_hours
        # Other tasks' batches are not polled here: that they are over is read.
        return any(b and not b.over and b.at > since and not (b.folder / "over.json").is_file() for b in self._batches)

    def _write(self, file: BinaryIO, keys: Sequence[str], todo: _Todo) -> dict[str, int]:
        """Write the requests; returns what is asked about, and how many replies each has already."""
        encode = self._sender.any_client.encode
        asked: dict[str, int] = {}
        for key in keys:
            replies = todo.replies.get(key, [])
            try:
                request = make_request(
                    todo.items[key], replies[-1] if replies else None, self._image_root, self._settings
                )
            except ImageProblem as problem:
                self._emit(key, Failed(problem.reason, problem.detail))
                del todo.items[key]
                continue
            file.write(encode(key, request))
            asked[key] = len(replies)
            if file.tell() > _MAX_BYTES:
                break
        file.seek(0)
        return asked

    def _claim(self, asked: Mapping[str, int]) -> Path | None:
        """The next number's folder, made by this call; None where a batch that was added asks about one of the items."""
        before = len(self._batches)
        while True:
            if self._stopping():
                raise Cancelled
            if not self._read_folder():
                self._sleep(0.2)
                continue
            added = [batch for batch in self._batches[before:] if batch and batch.over != "void"]
            if any(not batch.asked.keys().isdisjoint(asked) for batch in added):
                return None
            folder = self._folder / str(len(self._batches))
            if take(folder):
                return folder
            self._sleep(0.2)  # it is there, though this node may see that only later

    def _poll(self, batch: _Batch) -> None:
        """Ask the server how far a batch is; fetch its results when it is over."""
        batch.polled = time.monotonic()
        try:
            if batch.job is None and not self._find(batch):
                return
            job = str(batch.job)
            state = self._manage(batch.project, lambda client: client.batch_state(job))
            if not state.over:
                batch.missing_since = None
                self._give_up_in_time(batch, job)
                return
            there = state.name != "gone" and (not state.results or self._fetch(batch, state.results))
        except TryAgain as error:  # the next poll may do better
            print(f"{batch.title}: {error}", flush=True)
            return
        if not there and not self._missing_for_good(batch):
            return
        name, detail = (
            (state.name, state.detail) if there else ("gone", state.detail or "the server has no results of it")
        )
        self._end(batch, name, detail)
        print(f"{batch.title}: {name} {detail}".rstrip(), flush=True)

    def _find(self, batch: _Batch) -> bool:
        """Look for a batch of which only the intent is known."""
        batch.job = self._manage(batch.project, lambda client: client.find_batch(batch.title), _TRANSFER_SECONDS)
        if batch.job is not None:
            batch.missing_since, self._refused = None, 0
            write_json(batch.folder / "job.json", {"job": batch.job})
            return True
        if self._missing_for_good(batch):
            self._end(batch, "void", "the server knows no batch of that title")
            if batch.unheard is not None:
                self._refuse(batch.unheard)
        return False

    def _missing_for_good(self, batch: _Batch) -> bool:
        """Whether a batch that the server does not know has been missing for so long that it will not turn up."""
        if batch.missing_since is None:
            batch.missing_since = time.monotonic()
        return time.monotonic() - batch.missing_since >= self._patience

    def _give_up_in_time(self, batch: _Batch, job: str) -> None:
        """Cancel a batch that the server neither answers nor ends; wait an hour more for what comes of that, and no longer."""
        if time.time() - batch.at > 3600 * (self._batch.give_up_hours + 1):
            self._end(batch, "given_up", "it neither ended nor could be cancelled")
            print(f"{batch.title}: neither ended nor could be cancelled, it is given up", flush=True)
        elif time.time() - batch.at > 3600 * self._batch.give_up_hours and not batch.cancelled:
            print(f"{batch.title}: not over after {self._batch.give_up_hours:g} hours, it is given up", flush=True)
            batch.cancelled = True
            try:
                self._manage(batch.project, lambda client: client.cancel_batch(job))
            except Hopeless as error:  # it may have ended in this moment, as the next look at it tells
                print(f"{batch.title}: not cancelled ({error})", flush=True)

    def _fetch(self, batch: _Batch, results: str) -> bool:
        """Put the replies on disk as they came: they are paid for. False where the server has them no more.

        Raises:
            TryAgain: what came is no file of results.
        """

        def fetch(client: BatchClient) -> list[bytes] | None:
            with tempfile.TemporaryFile() as file:  # of each attempt its own: one that was left behind may still write
                if not client.download(results, file):
                    return None
                file.seek(0)
                return file.readlines()

        lines = self._manage(batch.project, fetch, _TRANSFER_SECONDS)
        if lines is None:
            return False
        if lines and all(_result(self._sender.any_client, line) is None for line in lines):
            raise TryAgain("the results are no results", reason="not_json")
        with AtomicFile(batch.folder / "results.jsonl") as whole:
            for line in lines:
                whole.write(line)
        return True

    def _end(self, batch: _Batch, state: str, detail: str) -> None:
        """Write down how a batch ended; who does so first returns to the budget what it did not cost."""
        batch.over = state
        write_json(batch.folder / "over.json", {"state": state, "detail": self._sender.mask(detail)})
        if not take(batch.folder / "settled"):
            return
        if state in ("gone", "cancelled", "given_up"):  # of those nobody knows what is on the bill
            return
        results = self._results(batch)
        paid = 0.0
        for result in results.values():
            tokens_in = getattr(result, "input_tokens", 0)
            paid += self._batch.price * cost.dollars(
                self._settings.prices, tokens_in, getattr(result, "output_tokens", 0)
            )
        if state.endswith("succeeded"):  # nor of a reply that is missing
            paid += batch.reserved * len(batch.asked.keys() - results.keys()) / len(batch.asked)
        self._budget.give_back(batch.reserved - paid)

    def _results(self, batch: _Batch) -> dict[str, RawReply | Exception]:
        """By item id, what came back."""
        found: dict[str, RawReply | Exception] = {}
        for line in (_bytes(batch.folder / "results.jsonl") or b"").splitlines():
            result = _result(self._sender.any_client, line)
            if result is not None and not isinstance(found.get(result[0]), RawReply):
                found[result[0]] = result[1]
        return found

    def _collect(self, batch: _Batch, todo: _Todo) -> None:
        """Emit what a batch says about items that are not settled."""
        batch.collected = True
        if batch.over == "void":
            return
        results, counts = self._results(batch), Counter[str]()
        for key, asked in batch.asked.items():
            item = todo.items.get(key)
            replies = todo.replies.setdefault(key, [])
            if item is None or len(replies) > asked:  # taken over by an earlier attempt
                continue
            result = results.get(key)
            counts[_outcome(result)] += 1
            if isinstance(result, RawReply):
                waited = max(0.0, time.time() - batch.at)
                replies.append(stored_reply(item, result, self._settings, seconds=waited, batch=True))
                self._emit(key, Ok(replies[-1]), durable=True)
                if verdict(replies[-1], self._settings) is None or len(replies) >= self._settings.max_asks:
                    del todo.items[key]
            elif isinstance(result, ItemRefused):
                empty = RawReply("", result.reason, result.input_tokens, 0, self._settings.model)
                value = stored_reply(item, empty, self._settings, seconds=0.0, batch=True)
                paid = value if result.input_tokens else None
                detail = self._sender.mask(result.detail)
                self._emit(key, Failed(result.reason, detail, value=paid), durable=paid is not None)
                del todo.items[key]
            else:
                todo.failures[key] += 1
        if counts:
            print(f"{batch.title}: {', '.join(f'{n:,} {what}' for what, n in counts.most_common())}", flush=True)

    def _manage(
        self, project: str, call: Callable[[BatchClient], Any], seconds: float | None = None, *, once: bool = False
    ) -> Any:
        return self._sender.manage(project, call, seconds or self._settings.timeout, once=once)

    def _wait(self, under_way: Sequence[_Batch]) -> None:
        """Sleep until the next poll is due."""
        due = [batch.polled + self._batch.poll_seconds for batch in under_way] or [self._not_before]
        self._sleep(max(0.05, min(due) - time.monotonic()))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopping():
            time.sleep(min(left, 0.5))


def under_way(folder: Path) -> int:
    """How many products the batches ask about that were handed in and are not over."""
    folders = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    waiting = [entry for entry in folders if not (entry / "over.json").is_file()]
    return sum(len((_read(entry / "batch.json") or {}).get("asked", ())) for entry in waiting)


def _read(path: Path) -> dict[str, Any] | None:
    """A small file that was written whole, or nothing."""
    try:
        found: dict[str, Any] = orjson.loads(_bytes(path) or b"")
    except orjson.JSONDecodeError:
        return None
    return found


def _bytes(path: Path) -> bytes | None:
    """What a file holds, or None where it is not there."""
    for attempt in range(3):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            # Two tasks that find a batch over both write its files; a network file system may lose the first between opening
            # and reading it.
            if error.errno != errno.ESTALE or attempt == 2:
                raise
    raise AssertionError


def _result(client: BatchClient, line: bytes) -> tuple[str, RawReply | Exception] | None:
    """A line of results, or None where it is none."""
    try:
        return client.decode(line)
    except ValueError:
        return None


def _outcome(result: RawReply | Exception | None) -> str:
    """A result in a word, to be counted."""
    if result is None:
        return "missing"
    return "answered" if isinstance(result, RawReply) else str(getattr(result, "reason", type(result).__name__))


def _uploading(file: BinaryIO, title: str) -> Callable[[BatchClient], str]:
    """A call that hands a file in, never twice at the same time: an attempt that was left behind may still be reading it."""
    alone = threading.Lock()

    def upload(client: BatchClient) -> str:
        if not alone.acquire(blocking=False):
            raise TryAgain("the upload is still under way", reason="timeout")
        try:
            file.seek(0)
            return client.upload(file, title)
        finally:
            alone.release()

    return upload
