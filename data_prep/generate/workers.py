"""Asks a generator for five question/answer pairs about every product. The only code that spends money.

A reply is on disk, raw, before anything looks at it; one that breaks the rules is answered by asking again, saying what was
wrong, up to ``generate.max_asks`` replies. A stored reply, the value of a record::

    {"item_id": "B0ADB4121C", "image_id": "70a3384411L", "text": "[{\\"question\\": ...", "finish_reason": "STOP",
     "model": "gemini-3.5-flash-lite", "input_tokens": 912, "output_tokens": 148, "dollars": 0.00015, ...}
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.generate import cost
from data_prep.generate.batch_api import Batcher
from data_prep.generate.clients.base import RawReply
from data_prep.generate.clients.errors import ItemRefused, TryAgain
from data_prep.generate.dispatcher import Cancelled, Sender
from data_prep.generate.prompt import PROMPT_FILE, make_request, stored_reply, verdict
from data_prep.generate.rate_limit import Budget
from data_prep.generate.settings import GenerateSettings
from data_prep.images.decode import ImageProblem
from data_prep.outcomes import Emit, Failed, Ok, UserError
from data_prep.records import Product
from data_prep.stand_in import StandIn


def ask_all(
    items: Iterator[Product],
    emit: Emit,
    *,
    image_root: Path,
    settings: GenerateSettings,
    quota_folder: Path,
    previous: Mapping[str, list[dict[str, Any]]],
    batches_folder: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Ask about every item.

    Args:
        items: products; their end is the request to stop, so that what is in flight is finished and emitted.
        emit: takes the outcomes: `Ok` with a reply (several for an item that is asked again), or `Failed`.
        image_root: folder of the images.
        settings: how to ask.
        quota_folder: shared by all tasks of the run.
        batches_folder: likewise; needed for ``settings.batch``.
        previous: by item id, stored replies that break the rules: they count, and are not paid for again.
        stopping: whether the task was asked to stop: nothing is waited for or sent any more; items whose request was not
            sent yet stay to be done, and what is in flight is answered and emitted.

    Raises:
        UserError: no request can succeed now: a bad key, the daily quota or the budget is gone, no such model. Every reply
            that was paid for has been emitted.
    """
    with contextlib.ExitStack() as stack:
        endpoint = settings.endpoint
        if stand_in := settings.stand_in:
            server = StandIn(
                stand_in.answers, latency=stand_in.latency, faults=dict(stand_in.faults), seed=stand_in.seed
            )
            endpoint = stack.enter_context(server).url
        crew = _Crew(emit, image_root, settings, endpoint, quota_folder, stopping)
        if settings.batch is None:
            crew.run(items, previous)
            return
        assert batches_folder is not None
        batcher = Batcher(settings, crew.sender, crew.budget, batches_folder, image_root, emit, stopping)
        with contextlib.suppress(Cancelled):
            left = batcher.ask(list(items), previous)
            crew.run(iter(list(left.items.values())), left.replies)


class _Crew:
    """The threads that ask one by one. The first error that is no item's own ends the work of all."""

    def __init__(
        self,
        emit: Emit,
        image_root: Path,
        settings: GenerateSettings,
        endpoint: str | None,
        quota_folder: Path,
        stopping: Callable[[], bool],
    ) -> None:
        self._emit, self._image_root = emit, image_root
        self._settings, self._stopping = settings, stopping
        self._error: BaseException | None = None
        self._pull = threading.Lock()
        self.budget = Budget(quota_folder, None if settings.stand_in else settings.max_dollars, cost.dearest(settings))
        self.sender = Sender(settings, endpoint, quota_folder, self.budget, self._over)

    def run(self, items: Iterator[Product], previous: Mapping[str, list[dict[str, Any]]]) -> None:
        """Work until the items end."""
        count = self._settings.concurrency * len(self._settings.projects)
        threads = [
            threading.Thread(target=self._work, args=(items, previous), name=f"ask-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _over(self) -> bool:
        """Whether nothing more should be sent."""
        return self._error is not None or self._stopping()

    def _work(self, items: Iterator[Product], previous: Mapping[str, list[dict[str, Any]]]) -> None:
        try:
            while not self._over():
                with self._pull:
                    item = next(items, None)
                if item is None:
                    return
                self._ask(item, list(previous.get(item.item_id, ())))
        except Cancelled:
            return
        except BaseException as error:
            if self._error is None:
                self._error = error

    def _ask(self, item: Product, replies: list[dict[str, Any]]) -> None:
        """Ask about one item until its reply is good or there were enough of them."""
        key = item.item_id
        while len(replies) < self._settings.max_asks:
            started = time.monotonic()
            try:
                last = replies[-1] if replies else None
                raw = self.sender.send(make_request(item, last, self._image_root, self._settings))
            except ImageProblem as problem:
                self._emit(key, Failed(problem.reason, problem.detail))
                return
            except ItemRefused as refused:
                empty = RawReply("", refused.reason, refused.input_tokens, refused.output_tokens, self._settings.model)
                stored = stored_reply(item, empty, self._settings, seconds=time.monotonic() - started)
                value = stored if refused.input_tokens else None
                detail = self.sender.mask(refused.detail)
                self._emit(key, Failed(refused.reason, detail, value=value), durable=value is not None)
                return
            except TryAgain as error:
                self._emit(key, Failed(error.reason, self.sender.mask(str(error)), retry=True))
                return
            replies.append(stored_reply(item, raw, self._settings, seconds=time.monotonic() - started))
            self._emit(key, Ok(replies[-1]), durable=True)
            if verdict(replies[-1], self._settings) is None:
                return


def identity(settings: GenerateSettings) -> dict[str, Any]:
    """What decides the replies: records made with another one are never mixed in. How fast and how often is not part of it."""
    return {
        "generator": settings.generator.replace("-", "_"),
        "model": settings.model,
        "temperature": settings.temperature,
        "max_output_tokens": settings.max_output_tokens,
        "prompt": hashlib.sha256(PROMPT_FILE.read_bytes()).hexdigest()[:12],
        "stand_in": _answers_digest(settings),
    }


def _answers_digest(settings: GenerateSettings) -> str | None:
    if settings.stand_in is None:
        return None
    try:
        with settings.stand_in.answers.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(
            f"generate.stand_in.answers: cannot read {settings.stand_in.answers}: {error.strerror}."
        ) from error
