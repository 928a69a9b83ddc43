"""Asks a generator for five question/answer pairs about every product. The only code that spends money.

A reply is on disk, raw, before anything looks at it; one that breaks the rules is answered by asking again, saying what was
wrong, up to ``generate.max_asks`` replies. A stored reply, the value of a record::

    {"item_id": "B0ADB4121C", "image_id": "70a3384411L", "text": "[{\\"question\\": ...", "finish_reason": "STOP",
     "model": "gemini-2.0-flash", "input_tokens": 912, "output_tokens": 148, "dollars": 0.00015, ...}
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep import cost
from data_prep.generators.base import RawReply, Request, mime_type
from data_prep.generators.errors import ItemRefused, TryAgain
from data_prep.image_files import ImageProblem, read_image_file
from data_prep.qa_parser import QAParseError, QAParser
from data_prep.quota import Budget
from data_prep.records import Emit, Failed, Ok, Product, Reply, UserError
from data_prep.sender import Cancelled, Sender
from data_prep.settings_generate import GenerateSettings
from data_prep.stand_in import StandIn

PROMPT_FILE = Path(__file__).parent / "prompts" / "five_questions.md"
_MAX_IMAGE_BYTES = 15_000_000  # a request with an inline picture may have 20 MB, and base64 adds a third


def ask_all(
    items: Iterator[Product],
    emit: Emit,
    *,
    image_root: Path,
    settings: GenerateSettings,
    quota_folder: Path,
    previous: Mapping[str, list[dict[str, Any]]],
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Ask about every item.

    Args:
        items: products; their end is the request to stop, so that what is in flight is finished and emitted.
        emit: takes the outcomes: `Ok` with a reply (several for an item that is asked again), or `Failed`.
        image_root: folder of the pictures.
        settings: how to ask.
        quota_folder: shared by all tasks of the run.
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
        crew = _Crew(items, emit, image_root, settings, endpoint, quota_folder, previous, stopping)
        crew.run()


class _Crew:
    """The threads that ask. The first error that is no item's own ends the work of all."""

    def __init__(
        self,
        items: Iterator[Product],
        emit: Emit,
        image_root: Path,
        settings: GenerateSettings,
        endpoint: str | None,
        quota_folder: Path,
        previous: Mapping[str, list[dict[str, Any]]],
        stopping: Callable[[], bool],
    ) -> None:
        self._items, self._emit, self._image_root = items, emit, image_root
        self._settings, self._previous, self._stopping = settings, previous, stopping
        self._error: BaseException | None = None
        self._pull = threading.Lock()
        budget = Budget(quota_folder, None if settings.stand_in else settings.max_dollars, cost.dearest(settings))
        self._sender = Sender(settings, endpoint, quota_folder, budget, self._over)

    def run(self) -> None:
        """Work until the items end."""
        count = self._settings.concurrency * len(self._settings.projects)
        threads = [threading.Thread(target=self._work, name=f"ask-{i}", daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _over(self) -> bool:
        """Whether nothing more should be sent."""
        return self._error is not None or self._stopping()

    def _work(self) -> None:
        try:
            while not self._over():
                with self._pull:
                    item = next(self._items, None)
                if item is None:
                    return
                self._ask(item)
        except Cancelled:
            return
        except BaseException as error:
            if self._error is None:
                self._error = error

    def _ask(self, item: Product) -> None:
        """Ask about one item until its reply is good or there were enough of them."""
        key = item.item_id
        try:
            image = read_image_file(self._image_root, item.image_path, _MAX_IMAGE_BYTES)
        except ImageProblem as problem:
            self._emit(key, Failed(problem.reason, problem.detail))
            return
        replies = list(self._previous.get(key, ()))
        while len(replies) < self._settings.max_asks:
            wrong = verdict(replies[-1], self._settings) if replies else None
            request = Request(prompt(item, wrong), image, mime_type(image))
            started = time.monotonic()
            try:
                raw = self._sender.send(request)
            except ItemRefused as refused:
                empty = RawReply("", refused.reason, refused.input_tokens, 0, self._settings.model)
                value = self._record(item, empty, started) if refused.input_tokens else None
                detail = self._sender.mask(refused.detail)
                self._emit(key, Failed(refused.reason, detail, value=value), durable=value is not None)
                return
            except TryAgain as error:
                self._emit(key, Failed(error.reason, self._sender.mask(str(error)), retry=True))
                return
            replies.append(self._record(item, raw, started))
            self._emit(key, Ok(replies[-1]), durable=True)
            if verdict(replies[-1], self._settings) is None:
                return

    def _record(self, item: Product, raw: RawReply, started: float) -> dict[str, Any]:
        settings = self._settings
        paid = 0.0 if settings.stand_in else cost.dollars(settings.prices, raw.input_tokens, raw.output_tokens)
        reply = Reply(
            item_id=item.item_id,
            image_id=item.image_id,
            text=raw.text.encode("utf-8", "replace").decode() if raw.text else None,
            finish_reason=raw.finish_reason,
            model=raw.model,
            input_tokens=raw.input_tokens,
            output_tokens=raw.output_tokens,
            dollars=paid,
            generator=settings.generator,
            seconds=round(time.monotonic() - started, 3),
        )
        return asdict(reply)


def verdict(value: dict[str, Any], settings: GenerateSettings) -> str | None:
    """Why a stored reply breaks the rules, in words that can be put to the model; None for five good pairs."""
    if value.get("finish_reason") == "MAX_TOKENS":
        return "the reply was too long and was cut off"
    try:
        parsed = QAParser(require_category=settings.require_category).parse(value.get("text") or "")
    except QAParseError as error:
        return f"no JSON array of five objects was found ({error.reason})"
    return "; ".join(parsed.complaints()) or None


def prompt(item: Product, wrong: str | None = None) -> str:
    """What is asked about one product; ``wrong`` says what was wrong with the reply before."""
    text = PROMPT_FILE.read_text(encoding="utf-8").format(
        name=_one_line(item.name),
        product_type=_one_line(item.product_type),
        color=_one_line(item.color) or "unknown",
        keywords=_one_line(", ".join(item.keywords)) or "none",
    )
    if wrong:
        text += f"\nYour last reply broke these rules: {wrong[:1500]}. Write five new pairs that keep to all of them.\n"
    return text


def _one_line(text: str) -> str:
    """A field of a listing, short and without line breaks, so that it cannot pass for instructions of its own."""
    return " ".join(text.split())[:300]


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
