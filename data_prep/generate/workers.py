"""Asks a model about every item: the five questions of a product, or second opinions. The only code that spends money.

A reply is on disk, unparsed, before anything looks at it. One that breaks the rules is followed by another request, which says
what was wrong, up to ``generate.max_asks`` replies. A stored `data_prep.records.Reply`, the value of a record::

    {"item_id": "B0ADB4121C", "image_id": "70a3384411L", "text": "[{\\"question\\": ...", "finish_reason": "STOP",
     "model": "gemini-3.5-flash-lite", "input_tokens": 912, "output_tokens": 148, "dollars": 0.00064, ...}
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic

from data_prep.generate.batch_api import BatchRunner
from data_prep.generate.clients.errors import ItemRefused, RetryableError
from data_prep.generate.dispatcher import Dispatcher
from data_prep.generate.prompt import TINY_REQUEST, FiveQuestions, ItemT, Prompter, refusal, stored_reply
from data_prep.generate.quota.breaker import FIRST_REPLIES
from data_prep.generate.quota.budget import Budget
from data_prep.generate.reply_check import ReplyCheck
from data_prep.generate.settings import GenerateSettings
from data_prep.generate.waiting import Cancelled
from data_prep.images.decode import ImageProblem
from data_prep.outcomes import Failed, Todo
from data_prep.records import Product
from data_prep.stand_in import StandIn, StandInOptions


def generate_all(
    todos: Iterator[Todo[Product]],
    *,
    image_root: Path,
    settings: GenerateSettings,
    ledger: Path,
    quota_folder: Path,
    batches_folder: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Ask for five questions about every product; arguments and errors as of `ask_all`."""
    ask_all(
        todos,
        FiveQuestions(settings, image_root),
        ledger=ledger,
        quota_folder=quota_folder,
        batches_folder=batches_folder,
        stopping=stopping,
    )


def ask_all(
    todos: Iterator[Todo[ItemT]],
    prompter: Prompter[ItemT],
    *,
    ledger: Path,
    quota_folder: Path,
    batches_folder: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Ask about every item.

    Args:
        todos: items to ask about; each outcome is `Ok` with a `Reply` (one for each request), or `Failed`. Where they
            end early, requests in flight are still answered and recorded.
        prompter: what to ask, and how.
        ledger: money and first replies; shared by all tasks of the run.
        quota_folder: shared by all runs that use the same projects.
        batches_folder: shared by all tasks of the run; None: neither submit batches nor take replies from them.
        stopping: whether the task was asked to stop. No new request is sent then; those in flight are answered and
            recorded, and all other products remain to be done.

    Raises:
        UserError: no request can succeed now, for instance a bad key, an exhausted quota or budget, or an unknown model. All
            replies that were paid for have been recorded.
    """
    settings = prompter.settings
    with contextlib.ExitStack() as stack:
        endpoint = settings.endpoint
        if local := settings.stand_in:
            options = StandInOptions(
                latency=local.latency,
                faults=local.faults,
                opinion_error=local.opinion_error,
                opinion_copies=local.opinion_copies,
            )
            endpoint = stack.enter_context(StandIn(local.answers, options)).url
        pool = WorkerPool(prompter, endpoint, ledger, quota_folder, stopping)
        stack.callback(pool.dispatcher.budget.close)
        in_batches = batches_folder is not None and batches_folder.is_dir()  # from an earlier launch: they are paid for
        if batches_folder is None or (settings.tier != "batch" and not in_batches):
            pool.run(todos)
            return
        if pool.replies.breaker.undecided and not in_batches:
            # A batch would buy hundreds of replies before the first one is seen.
            pool.run(itertools.islice(todos, FIRST_REPLIES))
        runner = BatchRunner(prompter, pool.dispatcher, pool.replies, batches_folder, stopping)
        with contextlib.suppress(Cancelled):
            pool.run(iter(runner.run(todos)))


class WorkerPool(Generic[ItemT]):
    """Threads that send single requests. A fatal error of one stops all.

    Args:
        prompter: what to ask, and how.
        endpoint: a server other than Google's.
        ledger, quota_folder: see `ask_all`.
        stopping: whether the task was asked to stop.
    """

    def __init__(
        self,
        prompter: Prompter[ItemT],
        endpoint: str | None,
        ledger: Path,
        quota_folder: Path,
        stopping: Callable[[], bool],
    ) -> None:
        settings = prompter.settings
        self._prompter, self._settings, self._stopping = prompter, settings, stopping
        self._error: BaseException | None = None
        self._next = threading.Lock()  # an iterator must not be advanced by two threads
        budget = Budget(ledger, None if settings.stand_in else settings.max_dollars)
        self.dispatcher = Dispatcher(settings, endpoint, quota_folder, budget, self._cancelled)
        self.replies = ReplyCheck(settings, prompter.fingerprint(), ledger, self._cancelled)
        self._suspects: list[tuple[Todo[ItemT], Failed]] = []  # failed while nothing was answered
        self._answered = False

    def run(self, todos: Iterator[Todo[ItemT]]) -> None:
        """Work until the products end.

        Raises:
            UserError: see `ask_all`.
        """
        count = self._settings.concurrency * len(self._settings.projects)
        threads = [
            threading.Thread(target=self._work, args=(todos,), name=f"worker-{i}", daemon=True) for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        if self._suspects and self._server_answers():
            self._settle_suspects()

    def _server_answers(self) -> bool:
        """Whether products failed by themselves, and not with the server. False: the task is stopping, so nobody knows.

        Where nothing was answered, as when only two products are left, the server is asked about something else.

        Raises:
            UserError: nothing is answered.
        """
        if self._answered:
            return True
        try:
            self.dispatcher.generate(TINY_REQUEST)
        except ItemRefused:  # an answer, if not a text
            return True
        except RetryableError as error:
            raise self.dispatcher.outage.error(self.dispatcher.mask(str(error))) from error
        except Cancelled:
            return False
        return True

    def _cancelled(self) -> bool:
        return self._error is not None or self._stopping()

    def _work(self, todos: Iterator[Todo[ItemT]]) -> None:
        try:
            while not self._cancelled():
                with self._next:
                    todo = next(todos, None)
                if todo is None:
                    return
                self._ask(todo)
        except Cancelled:
            return
        except BaseException as error:
            if self._error is None:
                self._error = error

    def _ask(self, todo: Todo[ItemT]) -> None:
        """Ask about one product until a reply keeps the rules, or there are ``max_asks`` of them."""
        item, replies = todo.item, list(todo.prior_replies)
        while len(replies) < self._settings.max_asks:
            try:
                request = self._prompter.request(item, replies)
            except ImageProblem as problem:
                todo.record(Failed(problem.reason, problem.detail))
                return
            permit = self.replies.breaker.enter()
            try:
                started = time.monotonic()
                raw = self.dispatcher.generate(request)
            except ItemRefused as error:
                detail, seconds = self.dispatcher.mask(error.detail), time.monotonic() - started
                failed = refusal(item, error, detail, self._settings, seconds=seconds)
                todo.record(failed, durable=failed.value is not None)
                self._settle_suspects()
                self.replies.check(failed, permit)
                return
            except RetryableError as error:
                self.replies.breaker.give_back(permit)
                self._suspects.append((todo, Failed(error.reason, self.dispatcher.mask(str(error)), retry=True)))
                return
            except BaseException:
                self.replies.breaker.give_back(permit)
                raise
            reply = stored_reply(item, raw, self._settings, seconds=time.monotonic() - started)
            replies.append(reply)
            recorded = self._prompter.outcome(item, reply)
            todo.record(recorded, durable=True)
            self._settle_suspects()
            self.replies.check(recorded, permit)
            if self._prompter.violations(item, reply) is None:
                return
            if isinstance(recorded, Failed) and self.replies.breaker.undecided:
                return  # it has its turn again when the first replies of other products are known

    def _settle_suspects(self) -> None:
        """Record the products that failed while nothing was answered: the server answers, so it was they."""
        self._answered = True
        while self._suspects:
            with contextlib.suppress(IndexError):  # another thread was first
                todo, failed = self._suspects.pop()
                todo.record(failed)
