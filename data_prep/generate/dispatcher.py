"""Sends one request: chooses project and key, keeps the quota, pauses, retries, sets a deadline.

The result is a reply, or one of the errors of `data_prep.generate.clients.errors` that a retry does not fix.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_prep.generate import models
from data_prep.generate.clients.base import ClientProtocol, RawReply, Request, client_class
from data_prep.generate.clients.errors import (
    DailyQuotaExhausted,
    FatalError,
    GeneratorError,
    ItemRefused,
    KeyRejected,
    ModelGone,
    ProjectRefused,
    RetryableError,
    Unreachable,
)
from data_prep.generate.cost import billed, max_request_cost, max_request_tokens
from data_prep.generate.quota.breaker import Outage
from data_prep.generate.quota.budget import Budget
from data_prep.generate.quota.rate_limit import ProjectQuota, limits_folder, next_day
from data_prep.generate.quota.throttle import Throttle
from data_prep.generate.settings import RequestSettings
from data_prep.generate.waiting import Cancelled, sleep, with_deadline
from data_prep.outcomes import UserError

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds, doubled after every failure
# Reasons to try again that say nothing about the product, however often they come.
_NEVER_THE_PRODUCT = ("status_429", "status_503")
_GRACE = 1.0  # seconds that a library's own timeout, whose error says more, comes before our deadline


@dataclass
class Project:
    """A Google project."""

    name: str
    clients: list[tuple[str, ClientProtocol]]  # (key, its client)
    quota: ProjectQuota
    throttle: Throttle
    _turn: int = 0

    def client(self) -> tuple[str, ClientProtocol] | None:
        """The next key and its client, in turn; None when every key was rejected."""
        clients = self.clients
        if not clients:
            return None
        self._turn += 1
        return clients[self._turn % len(clients)]


class Dispatcher:
    """Sends requests, from many threads.

    Args:
        settings: of generation.
        endpoint: a server other than Google's.
        quota_folder: shared by all runs that use the same projects.
        budget: the run's.
        cancelled: ends a wait when it becomes true.

    Raises:
        UserError: no key, no such generator, or an invalid address.
    """

    def __init__(
        self,
        settings: RequestSettings,
        endpoint: str | None,
        quota_folder: Path,
        budget: Budget,
        cancelled: Callable[[], bool],
    ) -> None:
        self._settings, self.budget, self._cancelled = settings, budget, cancelled
        self._quota_folder = quota_folder
        self._endpoint, self.outage = endpoint, Outage(settings.outage_minutes)
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise UserError(f"generate.endpoint: write http:// or https:// before {endpoint}")
        self._server = urllib.parse.urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "Google's server"
        self._lock = threading.Lock()
        self._turn = 0
        keys = read_keys(settings, os.environ)
        self._secrets = [key for of_project in keys.values() for key in of_project if key]
        make = client_class(settings.generator)
        self._projects = [
            Project(
                name,
                [(key, make(settings, key, endpoint)) for key in of_project],
                self._quota(name, settings),
                Throttle(settings.concurrency, cancelled),
            )
            for name, of_project in keys.items()
        ]
        self._why_none_left: UserError | None = None
        self._asking = settings  # with the successor in place of a model that is gone
        # For what needs no server: encoding and decoding the files of batches.
        self.any_client: Any = self._projects[0].clients[0][1]

    def _quota(self, project: str, settings: RequestSettings) -> ProjectQuota:
        folder = limits_folder(self._quota_folder, project, settings.model)
        return ProjectQuota(folder, project, settings.quota, self._cancelled, max_request_tokens(settings))

    def generate(self, request: Request) -> RawReply:
        """The reply to one request.

        Raises:
            ItemRefused: this product will not be answered.
            RetryableError: it failed too often, though the server can be reached.
            UserError: no request can succeed now (`FatalError`, `DailyQuotaExhausted`, `BudgetExhausted`).
            Cancelled: the task is stopping.
        """
        failures = 0
        while True:
            project = self._next_project()
            entered = project.throttle.enter()
            if entered is None:
                raise Cancelled
            pause = 0.0
            asked = self._asking.model
            try:
                reply = self._attempt(project, request)
                self.outage.succeeded()
                return reply
            except RetryableError as error:
                failures += 1
                self._check_retry(error, failures)
                pause = _pause(failures)
                if error.throttled:
                    # The throttle makes all requests wait, not only this one. Jitter, so that tasks do not return at once.
                    delay = error.delay if error.delay is not None else pause
                    project.throttle.throttled(entered, delay + random.uniform(0, 0.1) * delay)
                    pause = 0.0
            except (DailyQuotaExhausted, ProjectRefused) as error:
                self._set_aside(project, error)
            except KeyRejected as error:
                self._reject(project, error)
            except ModelGone as error:
                self._ask_successor(asked, error)
            finally:
                project.throttle.leave()
            self._sleep(pause)

    def _check_retry(self, error: RetryableError, failures: int) -> None:
        """Whether a request that failed is to be sent again.

        Raises:
            RetryableError: it failed too often.
            UserError: all requests do.
        """
        try:
            self.outage.failed(error)
        except FatalError as outage:
            raise FatalError(self.mask(str(outage))) from error
        if failures > self._settings.max_retries:
            if isinstance(error, Unreachable):
                raise self.unreachable(error) from error
            if error.reason not in _NEVER_THE_PRODUCT:
                raise error

    def _ask_successor(self, asked: str, gone: ModelGone) -> None:
        """From now on ask the successor instead of a model that does not answer any more.

        Raises:
            ModelGone: there is none, or it is the one that does not answer.
        """
        successor = self._settings.successor
        with self._lock:
            if successor is None or (self._asking.model == successor and asked == successor):
                raise gone
            if self._asking.model == successor:
                return  # another thread has switched while this request was under way
            card = models.card(successor)
            accepted = list(card.levels) if card else []  # 3.8-flash, for one, refuses to think minimally
            level = self._settings.thinking if self._settings.thinking in accepted else next(iter(accepted), None)
            self._asking = self._settings.model_copy(update={"model": successor, "thinking": level})
            make = client_class(self._settings.generator)
            for project in self._projects:
                project.clients = [(key, make(self._asking, key, self._endpoint)) for key, _ in project.clients]
                project.quota = self._quota(project.name, self._asking)
            self.any_client = self._projects[0].clients[0][1]
            print(f"{asked} does not answer any more: asking {successor}. {self.mask(str(gone))}", flush=True)

    def call_admin(self, project: str, call: Callable[[Any], T], seconds: float, *, once: bool = False) -> T:
        """Call an administrative method, which costs nothing and needs no quota, on a client of one project.

        Args:
            project: its name.
            call: gets a client; its result is returned.
            seconds: that it may take.
            once: the call must not be repeated. It is not retried, and its answer is waited for even when the task is asked to
                stop; other calls are abandoned then.

        Raises:
            RetryableError: it failed too often.
            UserError: it cannot succeed now.
            Cancelled: the task is stopping.
        """
        failures = 0
        while True:
            if self._cancelled():
                raise Cancelled
            with self._lock:
                found = next((p for p in self._projects if p.name == project), None)
                chosen = found.client() if found else None
            if found is None or chosen is None:
                raise self._why_none_left or FatalError(
                    f"Project {project} has no valid key left, and its batches need one."
                )
            key, client = chosen
            asked = self._asking.model
            try:
                return with_deadline(lambda: call(client), seconds + _GRACE, None if once else self._cancelled)  # noqa: B023
            except RetryableError as error:
                failures += 1
                if once or failures > self._settings.max_retries:
                    raise
                self._sleep(error.delay if error.delay is not None else _pause(failures))
            except KeyRejected as error:
                error.key = key
                self._reject(found, error)
            except ProjectRefused as error:
                self._set_aside(found, error)
                raise
            except ModelGone as error:  # it created nothing, so even a call that must not be repeated may be
                self._ask_successor(asked, error)
            except ItemRefused as error:  # not about a product here: a proxy may refuse a file of that size, say
                raise FatalError(
                    f"The server refuses a batch ({self.mask(error.detail)}). A smaller one may pass: lower "
                    f"generate.batch.requests."
                ) from error

    @property
    def project_names(self) -> list[str]:
        """The projects that still have a quota and a key.

        Raises:
            UserError: there is none.
        """
        with self._lock:
            return [project.name for project in self._usable()]

    def mask(self, text: str) -> str:
        """A text without keys; of each key only its last four characters remain."""
        for key in self._secrets:
            text = text.replace(key, f"...{key[-4:]}" if len(key) > 8 else "...")
        return text

    def unreachable(self, error: Unreachable) -> FatalError:
        """The error for the user when no connection can be established."""
        return FatalError(
            f"No connection to {self._server}: {error}. Check that the server is running and that this machine can reach it. "
            f"Compute nodes often have no internet: set HTTPS_PROXY if your site has a proxy, or generate on a node with "
            f"internet access. No product was marked as failed; the same command continues from here."
        )

    def _attempt(self, project: Project, request: Request) -> RawReply:
        chosen = project.client()
        if chosen is None:
            raise KeyRejected("")
        key, client = chosen
        quota = project.quota
        most = max_request_cost(self._asking, output_tokens=request.max_output_tokens)
        request_number = self.budget.reserve_request(most)  # before the slot: it may have to wait, and a slot expires
        paid = 0.0
        try:
            reservation = quota.wait()
            if reservation is None or self._cancelled():
                raise Cancelled
            reply = with_deadline(lambda: client.generate(request), self._settings.timeout + _GRACE)
            paid = billed(self._settings, reply)
        except KeyRejected as error:
            error.key = key
            raise
        except GeneratorError as error:
            paid = billed(self._settings, error)
            unanswered = isinstance(error, RetryableError) and not error.reason.startswith("status_")
            if unanswered and not isinstance(error, Unreachable):
                paid = most  # the reply that never arrived may have been billed: assume the worst
            raise
        finally:
            self.budget.settle_request(request_number, paid)
        quota.settle(reservation, reply.usage.input_tokens + reply.usage.output_tokens)
        project.throttle.succeeded()
        if self._asking is not self._settings and not reply.model_version:
            reply = dataclasses.replace(reply, model_version=self._asking.model)  # so that both are kept apart
        return reply

    def _usable(self) -> list[Project]:
        if not self._projects:
            assert self._why_none_left is not None
            raise self._why_none_left
        return self._projects

    def _next_project(self) -> Project:
        with self._lock:
            projects = self._usable()
            self._turn += 1
            return projects[self._turn % len(projects)]

    def _set_aside(self, project: Project, why: UserError) -> None:
        with self._lock:
            if project not in self._projects:
                return
            self._projects.remove(project)
            if self._projects:
                print(f"Project {project.name} is not used any more: {self.mask(str(why))}", flush=True)
            if isinstance(why, DailyQuotaExhausted):
                why = DailyQuotaExhausted(
                    f"The daily quota is used up ({self.mask(str(why))}). It is renewed at {next_day(time.time()):%Y-%m-%d %H:%M} UTC "
                    f"(midnight Pacific). All replies so far are on disk: the same command continues from here."
                )
            elif isinstance(why, ProjectRefused):
                why = ProjectRefused(f"Project {project.name}: {self.mask(str(why))} No product was given up for it.")
            self._why_none_left = why

    def _reject(self, project: Project, error: KeyRejected) -> None:
        with self._lock:
            before = len(project.clients)
            project.clients = [(key, client) for key, client in project.clients if key != error.key]
            message = (
                f"The key ending in {error.key[-4:]} of project {project.name} was rejected ({self.mask(str(error))})"
            )
            if len(project.clients) == before:
                return  # another thread was first, and has printed it
            print(f"{message}; it is not used any more.", flush=True)
            none_left = not project.clients
        if none_left:
            names = ", ".join(name for p in self._settings.projects if p.name == project.name for name in p.keys)
            self._set_aside(project, FatalError(f"{message}. Set a valid key in {names}."))

    def _sleep(self, seconds: float) -> None:
        if not sleep(seconds, self._cancelled):
            raise Cancelled


def _pause(failures: int) -> float:
    """Seconds to wait after a number of consecutive failures: exponential, with jitter."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)


def require_askable(settings: RequestSettings, environ: Mapping[str, str]) -> None:
    """Check, before anything is sent, that requests can succeed: the model lives, keys are set, and a cap has its price.

    Raises:
        UserError: they cannot.
    """
    card, day = models.card(settings.model), models.today()
    if card and card.is_shut_down(day) and card.after == "error":
        raise UserError(f"{' '.join(models.notices(settings.model, day))} Set {settings.section}.model.")
    read_keys(settings, environ)
    max_request_cost(settings)


def read_keys(settings: RequestSettings, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The keys of every project.

    Raises:
        UserError: a project has none, or one that cannot be sent; names the variables to set.
    """
    found: dict[str, list[str]] = {}
    for project in settings.projects:
        values = {name: environment.get(name, "").strip() for name in project.keys}
        for name, value in values.items():
            # Checked here, as the libraries' own errors about such a key would show it.
            if not re.fullmatch(r"[!-~]*", value):
                raise UserError(
                    f"{name} contains a character that no key has, such as a space or a line break: set it to the key alone."
                )
        keys = [value for value in values.values() if value]
        if not keys and settings.stand_in:
            keys = ["stand-in"]
        elif not keys and settings.generator.replace("-", "_") == "openai_compatible":
            keys = [""]  # vLLM and Ollama ask for none
        elif not keys:
            raise UserError(
                f"Project {project.name} has no API key: set {' or '.join(project.keys)} in the environment "
                f"(export {project.keys[0]}=...), or try without a key: make demo"
            )
        found[project.name] = keys
    return found
