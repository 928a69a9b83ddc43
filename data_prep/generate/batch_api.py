"""Gemini's Batch API: half the price, and an answer within 24 hours.

A task that starts reads the batches on disk (`data_prep.generate.batch_state`). It waits for those that are under way,
whichever task submitted them. One without job.json is searched for on the server by its title; if the server does not know
it, it was never created. So a kill at any moment neither loses a batch nor submits it twice. Whether a reply was recorded
already shows from the records of its product, as everywhere.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic

from data_prep.generate import cost
from data_prep.generate.batch_state import NEVER_CREATED, Batch, BatchFolder, Intent, decoded
from data_prep.generate.clients.base import BatchClient, RawReply
from data_prep.generate.clients.errors import FatalError, ItemRefused, RetryableError, Unreachable
from data_prep.generate.dispatcher import Dispatcher
from data_prep.generate.prompt import ItemT, Prompter, output_limit, refusal, stored_reply
from data_prep.generate.reply_check import ReplyCheck
from data_prep.generate.waiting import sleep
from data_prep.images.decode import ImageProblem
from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Reply

_TRIES = 2  # batches that may fail a product before it is asked about in a single request
_MAX_BYTES = 500_000_000  # of an input file; the API takes 2 GB
_TRANSFER_SECONDS = 1800.0  # limit of one upload or download
_MAX_PAUSE = 600.0  # seconds between two attempts to submit a batch
# Request timeouts until a missing batch is declared lost. A request of another task arrives within one timeout and takes
# effect within the next; what a task wrote is visible on another node after up to a minute, the default timeout.
_PATIENCE = 3


@dataclass
class _Product(Generic[ItemT]):
    """An item that is not settled: a product, or what else is asked about."""

    todo: Todo[ItemT]
    replies: list[Reply]
    failures: int = 0  # batches that did not answer it


class BatchRunner(Generic[ItemT]):
    """Asks about products in batches, as long as there are enough of them.

    Args:
        prompter: what to ask. With another tier than batch only batches of earlier launches are waited for.
        dispatcher: for its clients and the run's budget.
        replies: what follows from them.
        folder: of the batches, shared by all tasks of the run.
        stopping: whether the task was asked to stop.
    """

    def __init__(
        self,
        prompter: Prompter[ItemT],
        dispatcher: Dispatcher,
        replies: ReplyCheck,
        folder: Path,
        stopping: Callable[[], bool],
    ) -> None:
        settings = prompter.settings
        self._prompter, self._settings, self._batch = prompter, settings, settings.batch
        self._identity = dict(prompter.identity())
        self._dispatcher, self._budget, self._replies = dispatcher, dispatcher.budget, replies
        self._stopping = stopping
        self._at_least = min(settings.batch.at_least, settings.batch.requests)
        self._patience = _PATIENCE * settings.timeout  # seconds
        self._folder = BatchFolder(folder, self._patience)
        self._open: dict[str, _Product[ItemT]] = {}  # by item id
        self._not_before = 0.0  # monotonic; the server takes no batches before
        self._refused = 0  # consecutive submissions that failed
        self._turn = 0
        self._found: list[Ok | Failed] = []  # recorded, and not checked yet

    def run(self, todos: Iterable[Todo[ItemT]]) -> list[Todo[ItemT]]:
        """Submit, wait, and record results, until too few products are left to be worth waiting for a batch.

        Returns:
            What is to be asked about in single requests. When the task was asked to stop: what has no answer yet.

        Raises:
            UserError: no batch can succeed now.
        """
        self._open = {todo.item.item_id: _Product(todo, list(todo.prior_replies)) for todo in todos}
        while self._open and not self._stopping():
            self._folder.read()
            for batch in self._known():
                if not batch.state and time.monotonic() - batch.polled_at >= self._batch.poll_seconds:
                    self._poll(batch)
                if batch.state and not batch.collected:
                    self._collect(batch)
            under_way = [batch for batch in self._known() if not batch.state]
            busy = {key for batch in under_way for key in batch.intent.asked}
            ready = [key for key, product in self._open.items() if key not in busy and product.failures < _TRIES]
            if not under_way and (len(ready) < self._at_least or self._settings.tier != "batch"):
                break
            # A partial batch is only worth it when no other one is awaited: then its products may join the next.
            enough = self._batch.requests if under_way else self._at_least
            full = (
                self._settings.tier != "batch"
                or len(under_way) >= self._batch.at_once
                or time.monotonic() < self._not_before
            )
            if len(ready) >= enough and not full:
                if self._submit(ready[: self._batch.requests]):
                    continue
                if not under_way:
                    break
            self._wait(under_way)
        return [
            dataclasses.replace(product.todo, prior_replies=tuple(product.replies)) for product in self._open.values()
        ]

    def _known(self) -> list[Batch]:
        """The batches about products of this task. A reply under other settings is never taken for one under these."""
        mine = [batch for batch in self._folder.batches if batch.intent.settings == self._identity]
        return [batch for batch in mine if batch.asks_about(self._open)]

    def _submit(self, keys: Sequence[str]) -> bool:
        """Submit a batch, unless a moment ago something changed; False where the budget does not allow one."""
        title = f"product-vqa-{uuid.uuid4().hex[:12]}"
        names = self._dispatcher.project_names
        project = names[self._turn % len(names)]
        self._turn += 1
        reserved = self._most(keys)
        if not self._budget.reserve(reserved):
            return False
        kept = 0.0
        try:
            with tempfile.TemporaryFile() as file:
                asked, made_from = self._encode(file, keys)
                if len(asked) < self._at_least and any(key not in self._open for key in keys):
                    return True  # images were unreadable, which is recorded: choose again among the rest
                upload = self._call(project, _upload_once(file, title), _TRANSFER_SECONDS)
            folder = self._folder.claim(asked, self._stopping)
            if folder is None:  # another attempt has just submitted one of the products
                return True
            kept = self._most(asked)
        except RetryableError as error:
            if isinstance(error, Unreachable) and not self._any_under_way():
                raise self._dispatcher.unreachable(error) from error
            self._postpone(error)
            return True
        finally:
            self._budget.release(reserved - kept)
        intent = Intent(title, project, time.time(), kept, self._identity, asked, made_from)
        self._create(self._folder.add(folder, intent), upload)
        return True

    def _most(self, keys: Iterable[str]) -> float:
        """Dollars that requests about these products can cost; 0 for those that are settled."""
        limits = [output_limit(self._open[key].replies, self._settings) for key in keys if key in self._open]
        return sum(cost.max_request_cost(self._settings, tier="batch", output_tokens=limit) for limit in limits)

    def _create(self, batch: Batch, upload: str) -> None:
        """Have the server create a batch from an uploaded file. From here on the batch may be billed."""
        title = batch.intent.title
        try:
            job = self._call(batch.intent.project, lambda client: client.create_batch(upload, title), once=True)
        except RetryableError as error:
            if not error.throttled:
                # It may have been created all the same: it is searched for before its products are asked about again.
                print(f"{title}: no answer to its creation ({error}); searching for it", flush=True)
                batch.unconfirmed = error
                return
            self._finish(batch, NEVER_CREATED, str(error))
            self._postpone(error)
        except UserError as error:
            self._finish(batch, NEVER_CREATED, str(error))
            raise
        else:
            self._refused = 0
            batch.created(job)
            print(f"{title}: {len(batch.intent.asked):,} requests submitted as {job}", flush=True)

    def _postpone(self, error: RetryableError) -> None:
        """Submit nothing for a while, as the server took no batch.

        Raises:
            UserError: it took none for too long.
        """
        self._refused += 1
        if self._refused > self._settings.max_retries and not self._any_under_way():
            raise UserError(
                f"The server took no batch {self._refused} times in a row ({error}). Smaller batches may pass: lower "
                f"generate.batch.requests. Or start again later, or with generate.tier=standard at the full price."
            ) from error
        pause = min(_MAX_PAUSE, self._batch.poll_seconds * 2 ** min(self._refused - 1, 10))
        self._not_before = time.monotonic() + (error.delay if error.delay is not None else pause)
        print(f"the server took no batch ({error}); trying again later", flush=True)

    def _any_under_way(self) -> bool:
        """Whether any task has a batch whose end may make room for another."""
        return self._folder.any_under_way(time.time() - 3600 * self._batch.give_up_hours)

    def _encode(self, file: BinaryIO, keys: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
        """Write the requests into an input file; by item id, how many replies each product had, and its `Todo.made_from`."""
        encode = self._dispatcher.any_client.encode
        asked: dict[str, int] = {}
        made_from: dict[str, str] = {}
        for key in keys:
            product = self._open[key]
            try:
                request = self._prompter.request(product.todo.item, product.replies)
            except ImageProblem as problem:
                product.todo.record(Failed(problem.reason, problem.detail))
                del self._open[key]
                continue
            file.write(encode(key, request))
            asked[key] = len(product.replies)
            made_from[key] = product.todo.made_from
            if file.tell() > _MAX_BYTES:
                break
        file.seek(0)
        return asked, made_from

    def _poll(self, batch: Batch) -> None:
        """Ask the server for the state of a batch; fetch its results when it is finished."""
        batch.polled_at = time.monotonic()
        title = batch.intent.title
        try:
            if batch.job is None and not self._find(batch):
                return
            job = str(batch.job)
            state = self._call(batch.intent.project, lambda client: client.batch_state(job))
            if not state.finished:
                batch.missing_since = None
                self._cancel_when_overdue(batch, job)
                return
            available = state.name != "gone" and (not state.results or self._fetch(batch, state.results))
        except RetryableError as error:  # the next poll may do better
            print(f"{title}: {error}", flush=True)
            return
        name, detail = state.name, state.detail
        if not available:
            if not self._missing_for_good(batch):
                return
            name, detail = "gone", detail or "the server does not have its results"
        self._finish(batch, name, detail)
        print(f"{title}: {name} {detail}".rstrip(), flush=True)

    def _find(self, batch: Batch) -> bool:
        """Search the server for a batch of which only the intent is known."""
        title = batch.intent.title
        job = self._call(batch.intent.project, lambda client: client.find_batch(title), _TRANSFER_SECONDS)
        if job is not None:
            self._refused = 0
            batch.created(job)
            return True
        if self._missing_for_good(batch):
            self._finish(batch, NEVER_CREATED, "the server does not know a batch of that title")
            if batch.unconfirmed is not None:
                self._postpone(batch.unconfirmed)
        return False

    def _missing_for_good(self, batch: Batch) -> bool:
        """Whether the server has not known a batch for so long that it will not appear any more."""
        if batch.missing_since is None:
            batch.missing_since = time.monotonic()
        return time.monotonic() - batch.missing_since >= self._patience

    def _cancel_when_overdue(self, batch: Batch, job: str) -> None:
        """Cancel a batch that the server does not finish in time; abandon it if it has not ended an hour later."""
        title, age = batch.intent.title, time.time() - batch.intent.at
        if age > 3600 * (self._batch.give_up_hours + 1):
            self._finish(batch, "abandoned", "it neither ended nor could be cancelled")
            print(f"{title}: neither ended nor could be cancelled; abandoned", flush=True)
        elif age > 3600 * self._batch.give_up_hours and not batch.cancelled:
            print(f"{title}: not finished after {self._batch.give_up_hours:g} hours; cancelling it", flush=True)
            batch.cancelled = True
            try:
                self._call(batch.intent.project, lambda client: client.cancel_batch(job))
            except FatalError as error:  # it may have ended in this moment, which the next poll tells
                print(f"{title}: not cancelled ({error})", flush=True)

    def _fetch(self, batch: Batch, results: str) -> bool:
        """Write the results to disk, unparsed: they are paid for. False where the server does not have them any more.

        Raises:
            RetryableError: what the server sent is not a file of results.
        """

        def fetch(client: BatchClient) -> list[bytes] | None:
            with (
                tempfile.TemporaryFile() as file
            ):  # one per attempt: an abandoned attempt may still be writing to its own
                if not client.download(results, file):
                    return None
                file.seek(0)
                return file.readlines()

        lines = self._call(batch.intent.project, fetch, _TRANSFER_SECONDS)
        if lines is None:
            return False
        if lines and all(decoded(self._dispatcher.any_client, line) is None for line in lines):
            raise RetryableError("the file of results has no results in it", reason="not_json")
        batch.save_results(lines)
        return True

    def _finish(self, batch: Batch, state: str, detail: str) -> None:
        """Write down how a batch ended, and release from the budget what it did not cost."""
        paid = None
        if state not in ("gone", "cancelled", "abandoned"):  # of those the bill is unknown
            results, asked = batch.results(self._dispatcher.any_client), batch.intent.asked
            paid = sum(cost.billed(self._settings, result, tier="batch") for result in results.values())
            if state.endswith("succeeded"):  # a reply that is missing may be on the bill: assume the worst
                paid += batch.intent.reserved * len(asked.keys() - results.keys()) / len(asked)
        first = batch.finish(state, self._dispatcher.mask(detail), paid)
        if first and paid is not None:
            self._budget.release(batch.intent.reserved - paid)

    def _collect(self, batch: Batch) -> None:
        """Record what a batch says about products that are not settled."""
        batch.collected = True
        if batch.state == NEVER_CREATED:
            return
        results, counts, changed = batch.results(self._dispatcher.any_client), Counter[str](), 0.0
        seconds = max(0.0, time.time() - batch.intent.at)
        for key, asked in batch.intent.asked.items():
            product = self._open.get(key)
            if product is None or len(product.replies) > asked:  # recorded by an earlier attempt
                continue
            result = results.get(key)
            if product.todo.made_from != batch.intent.made_from[key]:
                counts["about a product that has changed since"] += 1
                changed += cost.billed(self._settings, result, tier="batch")
                continue
            counts[_in_a_word(result)] += 1
            self._record(product, result, seconds)
        if changed:
            print(f"{batch.intent.title}: ${changed:.4f} paid for what has changed since, kept in {batch.folder}")
        if counts:
            print(f"{batch.intent.title}: {', '.join(f'{n:,} {what}' for what, n in counts.most_common())}", flush=True)
        while self._found:  # all of them are on disk now
            self._replies.check(self._found.pop(0), None)

    def _record(self, product: _Product[ItemT], result: RawReply | Exception | None, seconds: float) -> None:
        """Record one result; without one the product goes into another batch."""
        item, record, replies = product.todo.item, product.todo.record, product.replies
        if isinstance(result, RawReply):
            replies.append(stored_reply(item, result, self._settings, seconds=seconds, batch=True))
            recorded = self._prompter.outcome(item, replies[-1])
            record(recorded, durable=True)
            self._found.append(recorded)
            if len(replies) >= self._settings.max_asks or self._prompter.violations(item, replies[-1]) is None:
                del self._open[item.item_id]
        elif isinstance(result, ItemRefused):
            detail = self._dispatcher.mask(result.detail)
            failed = refusal(item, result, detail, self._settings, seconds=seconds, batch=True)
            record(failed, durable=failed.value is not None)
            self._found.append(failed)
            del self._open[item.item_id]
        else:
            product.failures += 1

    def _call(
        self, project: str, call: Callable[[BatchClient], Any], seconds: float | None = None, *, once: bool = False
    ) -> Any:
        return self._dispatcher.call_admin(project, call, seconds or self._settings.timeout, once=once)

    def _wait(self, under_way: Sequence[Batch]) -> None:
        """Sleep until the next poll is due."""
        due = [batch.polled_at + self._batch.poll_seconds for batch in under_way] or [self._not_before]
        sleep(max(0.05, min(due) - time.monotonic()), self._stopping)


def _in_a_word(result: RawReply | Exception | None) -> str:
    """A result as a word that is counted."""
    if result is None:
        return "missing"
    return "answered" if isinstance(result, RawReply) else str(getattr(result, "reason", type(result).__name__))


def _upload_once(file: BinaryIO, title: str) -> Callable[[BatchClient], str]:
    """A call that uploads a file, never twice at a time: an abandoned attempt may still be reading it."""
    alone = threading.Lock()

    def upload(client: BatchClient) -> str:
        if not alone.acquire(blocking=False):
            raise RetryableError("the upload is still under way", reason="timeout")
        try:
            file.seek(0)
            return client.upload(file, title)
        finally:
            alone.release()

    return upload
