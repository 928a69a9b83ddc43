"""Asking in batches: for half the price, by whoever can wait a day. Gemini's Batch API.

What was handed in is written down before it is handed in, in numbered folders that all tasks of the run share::

    3_generate/batches/12/batch.json      title, project, what was asked about
    3_generate/batches/12/job.json        the server's name of it
    3_generate/batches/12/results.jsonl   what came back, as it came
    3_generate/batches/12/over.json       how it ended; nothing about it is asked of the server any more

A task that starts reads them all. A batch that is under way is waited for, whoever handed it in; one without job.json is looked
for at the server by its title, and counts as never made when it is not there: so a kill at any moment neither loses a batch nor
hands it in twice. Whether a reply was taken over already is seen from the records of its item, as everywhere.

A number is claimed by making its folder (see `data_prep.quota.take`), so each claim comes after a look at every batch
before it, even where a listing of the folder is a minute old on this node.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from data_prep import cost
from data_prep.generators.base import BatchClient, RawReply
from data_prep.generators.errors import ItemRefused, TryAgain
from data_prep.image_files import ImageProblem
from data_prep.prompting import make_request, stored_reply, verdict
from data_prep.quota import Budget, take
from data_prep.records import AtomicFile, Emit, Failed, Ok, Product, UserError, write_json
from data_prep.sender import Cancelled, Sender
from data_prep.settings_generate import GenerateSettings

_TRIES = 2  # batches that may fail an item before it is asked about one by one
_MAX_BYTES = 500_000_000  # of a batch's file; the API takes 2 GB
_TRANSFER_SECONDS = 1800.0  # that a file may take in either direction


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
    missing_since: float | None = None  # monotonic; when the server first did not know its title
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
        image_root: of the pictures.
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
            if not under_way and len(ready) < self._batch.at_least:
                break
            enough = self._batch.requests if under_way else self._batch.at_least
            full = len(under_way) >= self._batch.at_once or time.monotonic() < self._not_before
            if len(ready) >= enough and not full:
                if not self._hand_in(ready[: self._batch.requests], todo) and not under_way:
                    break
                continue
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
                if time.monotonic() - self._unwritten_since < self._settings.timeout:
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
        with tempfile.TemporaryFile() as file:
            asked = self._write(file, keys, todo)
            if len(asked) < self._batch.at_least:
                return bool(len(asked) < len(keys))  # pictures were missing, and are told: look again at what is left
            reserved = cost.dearest(self._settings) * self._batch.price * len(asked)
            if not self._budget.draw(reserved):
                return False
            try:
                upload = self._manage(project, lambda client: client.upload(file, title), _TRANSFER_SECONDS)
                folder = self._claim(asked)
            except BaseException:
                self._budget.give_back(reserved)
                raise
        if folder is None:  # another attempt asks about one of them
            self._budget.give_back(reserved)
            return True
        batch = _Batch(folder, title, project, time.time(), reserved, asked)
        names = ("title", "project", "at", "reserved", "asked")
        write_json(folder / "batch.json", {name: getattr(batch, name) for name in names})
        self._batches.append(batch)
        try:
            batch.job = self._manage(project, lambda client: client.create_batch(upload, title), retries=0)
        except TryAgain as error:
            if not error.throttled:
                # It may have been made all the same: it is looked for, by its title, before anything is asked again.
                print(f"{title}: no answer to its creation ({error}); looking for it", flush=True)
                return True
            self._end(batch, "void", str(error))
            self._refused += 1
            if self._refused > self._settings.max_retries and not any(b and not b.over for b in self._batches):
                raise UserError(
                    f"The server took no batch {self._refused} times in a row ({error}). Smaller ones may pass "
                    f"(generate.batch.requests); or start again later, or without generate.batch at the full price."
                ) from error
            pause = min(600.0, self._batch.poll_seconds * 2 ** (self._refused - 1))
            self._not_before = time.monotonic() + (error.delay if error.delay is not None else pause)
            return True
        except UserError as error:
            self._end(batch, "void", str(error))
            raise
        self._refused = 0
        write_json(folder / "job.json", {"job": batch.job})
        print(f"{title}: {len(asked):,} requests handed in as {batch.job}", flush=True)
        return True

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
        while True:
            if self._stopping():
                raise Cancelled
            before = len(self._batches)
            if not self._read_folder():
                self._sleep(0.2)
                continue
            added = [batch for batch in self._batches[before:] if batch and not batch.over]
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
                self._give_up_in_time(batch, job)
                return
            if state.results:
                self._fetch(batch, state.results)
        except TryAgain as error:  # the next poll may do better
            print(f"{batch.title}: {error}", flush=True)
            return
        self._end(batch, state.name, state.detail)
        print(f"{batch.title}: {state.name} {state.detail}".rstrip(), flush=True)

    def _find(self, batch: _Batch) -> bool:
        """Look for a batch of which only the intent is known."""
        batch.job = self._manage(batch.project, lambda client: client.find_batch(batch.title))
        if batch.job is not None:
            write_json(batch.folder / "job.json", {"job": batch.job})
            return True
        if batch.missing_since is None:
            batch.missing_since = time.monotonic()
        # Another task may be about to make it; that takes no longer than a request may.
        if time.monotonic() - batch.missing_since >= self._settings.timeout:
            self._end(batch, "void", "the server knows no batch of that title")
        return False

    def _give_up_in_time(self, batch: _Batch, job: str) -> None:
        """Cancel a batch that the server neither answers nor ends."""
        if time.time() - batch.at > 3600 * self._batch.give_up_hours and not batch.cancelled:
            print(f"{batch.title}: not over after {self._batch.give_up_hours:g} hours, it is given up", flush=True)
            self._manage(batch.project, lambda client: client.cancel_batch(job))
            batch.cancelled = True

    def _fetch(self, batch: _Batch, results: str) -> None:
        """Put the replies on disk as they came: they are paid for.

        Raises:
            TryAgain: what came is no file of results.
        """
        with tempfile.TemporaryFile() as file:
            self._manage(batch.project, lambda client: client.download(results, _emptied(file)), _TRANSFER_SECONDS)
            file.seek(0)
            lines = file.readlines()
        if lines and all(_result(self._sender.any_client, line) is None for line in lines):
            raise TryAgain("the results are no results", reason="not_json")
        with AtomicFile(batch.folder / "results.jsonl") as whole:
            for line in lines:
                whole.write(line)

    def _end(self, batch: _Batch, state: str, detail: str) -> None:
        """Write down how a batch ended; who does so first returns to the budget what it did not cost."""
        batch.over = state
        write_json(batch.folder / "over.json", {"state": state, "detail": self._sender.mask(detail)})
        if not take(batch.folder / "settled"):
            return
        paid = 0.0
        for result in self._results(batch).values():
            tokens_in = getattr(result, "input_tokens", 0)
            paid += cost.dollars(self._settings.prices, tokens_in, getattr(result, "output_tokens", 0))
        if state not in ("gone", "cancelled"):  # of those nobody knows what is on the bill
            self._budget.give_back(batch.reserved - paid * self._batch.price)

    def _results(self, batch: _Batch) -> dict[str, RawReply | Exception]:
        """By item id, what came back."""
        try:
            lines = (batch.folder / "results.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        return dict(result for line in lines if (result := _result(self._sender.any_client, line)) is not None)

    def _collect(self, batch: _Batch, todo: _Todo) -> None:
        """Emit what a batch says about items that are not settled."""
        batch.collected = True
        if batch.over == "void":
            return
        results = self._results(batch)
        for key, asked in batch.asked.items():
            item = todo.items.get(key)
            replies = todo.replies.setdefault(key, [])
            if item is None or len(replies) > asked:  # taken over by an earlier attempt
                continue
            result = results.get(key)
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

    def _manage(
        self, project: str, call: Callable[[BatchClient], Any], seconds: float | None = None, retries: int | None = None
    ) -> Any:
        return self._sender.manage(project, call, seconds or self._settings.timeout, retries)

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
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return found


def _result(client: BatchClient, line: bytes) -> tuple[str, RawReply | Exception] | None:
    """A line of results, or None where it is none."""
    try:
        return client.decode(line)
    except ValueError:
        return None


def _emptied(file: BinaryIO) -> BinaryIO:
    """The file, without what an attempt before wrote."""
    file.seek(0)
    file.truncate()
    return file
