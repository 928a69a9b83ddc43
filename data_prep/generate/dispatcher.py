"""Sends one request, whatever it takes: the right project and key, its quota, pauses, retries, a deadline.

All that can come of it: a reply, or one of the errors of `data_prep.generate.clients.errors` that retrying does not mend.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from data_prep.generate.clients.base import ClientProtocol, RawReply, Request, client_class
from data_prep.generate.clients.errors import (
    DailyQuotaGone,
    GeneratorError,
    Hopeless,
    ItemRefused,
    KeyRejected,
    TryAgain,
    Unreachable,
)
from data_prep.generate.cost import dearest, dollars, most_tokens
from data_prep.generate.rate_limit import Budget, ProjectQuota, next_day
from data_prep.generate.settings import GenerateSettings, ProjectSettings
from data_prep.generate.throttle import Throttle
from data_prep.outcomes import UserError

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds, doubled after every failure


class Cancelled(Exception):
    """There is no sense in going on, as another request found, or no time; this one was not sent."""


class Project:
    """One project: its keys, its quota, its throttle."""

    def __init__(
        self,
        settings: GenerateSettings,
        project: ProjectSettings,
        keys: list[str],
        endpoint: str | None,
        quota_folder: Path,
        cancelled: Callable[[], bool],
    ) -> None:
        make = client_class(settings.generator)
        self.name = project.name
        self.clients: list[tuple[str, ClientProtocol]] = [(key, make(settings, key, endpoint)) for key in keys]
        self.quota = ProjectQuota(quota_folder, project.name, settings.quota, cancelled, most_tokens(settings))
        self.throttle = Throttle(settings.concurrency, cancelled)
        self._turn = 0

    def client(self) -> tuple[str, ClientProtocol] | None:
        """The next key and its client, in turn; None when every key was set aside."""
        clients = self.clients
        if not clients:
            return None
        self._turn += 1
        return clients[self._turn % len(clients)]


class Sender:
    """Sends requests, from many threads.

    Args:
        settings: of generation.
        endpoint: another server than Google's.
        quota_folder: what the tasks of the run share.
        budget: the run's.
        cancelled: asked while waiting.

    Raises:
        UserError: no key, no such generator, an address that is none.
    """

    def __init__(
        self,
        settings: GenerateSettings,
        endpoint: str | None,
        quota_folder: Path,
        budget: Budget,
        cancelled: Callable[[], bool],
    ) -> None:
        self._settings, self._budget, self._cancelled = settings, budget, cancelled
        self._dearest = dearest(settings)
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise UserError(f"generate.endpoint: write http:// or https:// before {endpoint}")
        self._server = urllib.parse.urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "Google's server"
        self._lock = threading.Lock()
        self._turn = 0
        found = read_keys(settings, os.environ)
        self._secrets = [key for keys in found.values() for key in keys if key]
        self._projects = [
            Project(settings, project, found[project.name], endpoint, quota_folder, cancelled)
            for project in settings.projects
        ]
        self._why_none_left: UserError | None = None
        self._any_client = self._projects[0].clients[0][1]

    def send(self, request: Request) -> RawReply:
        """The reply to one request.

        Raises:
            ItemRefused: this product will not be answered.
            TryAgain: it failed too often, though the server can be reached.
            UserError: no request can succeed now (`Hopeless`, `DailyQuotaGone`, `BudgetGone`).
            Cancelled: see there.
        """
        failures = 0
        while True:
            project = self._next_project()
            entered = project.throttle.enter()
            if entered is None:
                raise Cancelled
            try:
                return self._try(project, request)
            except TryAgain as error:
                failures += 1
                if failures > self._settings.max_retries:
                    if isinstance(error, Unreachable):
                        raise self.cut_off(error) from error
                    raise
                pause = _pause(failures)
                if error.throttled:
                    wish = error.delay if error.delay is not None else pause
                    project.throttle.throttled(entered, wish + random.uniform(0, 0.1) * wish)
                    pause = 0.0
            except DailyQuotaGone as error:
                self._set_aside(project, error)
                pause = 0.0
            except KeyRejected as error:
                self._reject(project, error)
                pause = 0.0
            finally:
                project.throttle.leave()
            self._sleep(pause)

    def manage(self, project: str, call: Callable[[Any], T], seconds: float, *, once: bool = False) -> T:
        """What ``call`` returns of a client of one project; for calls that cost nothing, beside quota and budget.

        Args:
            project: its name.
            call: gets a client.
            seconds: that it may take.
            once: it must not be made twice: it is not tried again after errors that may pass, and its answer is waited for
                even when the task is asked to stop. Other calls are left behind then.

        Raises:
            TryAgain: it failed too often.
            UserError: it cannot succeed now.
            Cancelled: see there.
        """
        failures = 0
        while True:
            if self._cancelled():
                raise Cancelled
            with self._lock:
                found = next((p for p in self._projects if p.name == project), None)
                chosen = found.client() if found else None
            if found is None or chosen is None:
                raise self._why_none_left or Hopeless(
                    f"Project {project} has no valid key left, and its batches need one."
                )
            key, client = chosen
            try:
                return with_deadline(lambda: call(client), seconds + 1, None if once else self._cancelled)  # noqa: B023
            except TryAgain as error:
                failures += 1
                if once or failures > self._settings.max_retries:
                    raise
                self._sleep(error.delay if error.delay is not None else _pause(failures))
            except KeyRejected as error:
                error.key = key
                self._reject(found, error)
            except ItemRefused as error:  # what is refused is no product here: a proxy takes no file of that size, say
                raise Hopeless(
                    f"The server refuses a batch ({self.mask(error.detail)}). A smaller one may pass (generate.batch.requests)."
                ) from error

    @property
    def project_names(self) -> list[str]:
        """The projects that can still be asked.

        Raises:
            UserError: there is none.
        """
        with self._lock:
            if not self._projects:
                assert self._why_none_left is not None
                raise self._why_none_left
            return [project.name for project in self._projects]

    @property
    def any_client(self) -> Any:
        """A client for what needs no server: writing and reading the files of batches."""
        return self._any_client

    def mask(self, text: str) -> str:
        """A text without keys: of a key only its last four characters stay."""
        for key in self._secrets:
            text = text.replace(key, f"...{key[-4:]}" if len(key) > 8 else "...")
        return text

    def _try(self, project: Project, request: Request) -> RawReply:
        chosen = project.client()
        if chosen is None:
            raise KeyRejected("")
        key, client = chosen
        self._budget.reserve()  # first, as it may have to wait, and a permit goes stale
        paid = 0.0
        try:
            permission = project.quota.wait()
            if permission is None or self._cancelled():
                raise Cancelled
            reply = with_deadline(lambda: client.ask(request), self._settings.timeout + 1)
            paid = self._price(reply.input_tokens, reply.output_tokens)
        except KeyRejected as error:
            error.key = key
            raise
        except GeneratorError as error:
            paid = self._price(getattr(error, "input_tokens", 0), getattr(error, "output_tokens", 0))
            unheard = isinstance(error, TryAgain) and not error.reason.startswith("status_")
            if unheard and not isinstance(error, Unreachable):
                paid = self._dearest  # nobody knows whether the reply that never came is on the bill
            raise
        finally:
            self._budget.settle(paid)
        project.quota.used(permission, reply.input_tokens + reply.output_tokens)
        project.throttle.succeeded()
        return reply

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return dollars(self._settings.prices, tokens_in, tokens_out)

    def _next_project(self) -> Project:
        with self._lock:
            if not self._projects:
                assert self._why_none_left is not None
                raise self._why_none_left
            self._turn += 1
            return self._projects[self._turn % len(self._projects)]

    def _set_aside(self, project: Project, why: UserError) -> None:
        with self._lock:
            if project in self._projects:
                self._projects.remove(project)
                if isinstance(why, DailyQuotaGone):
                    why = DailyQuotaGone(
                        f"The daily quota is gone ({self.mask(str(why))}); it is there again at {next_day():%Y-%m-%d %H:%M} UTC "
                        f"(midnight Pacific). What was answered is on disk: the same command goes on from there."
                    )
                self._why_none_left = why

    def _reject(self, project: Project, error: KeyRejected) -> None:
        with self._lock:
            before = len(project.clients)
            project.clients = [(key, client) for key, client in project.clients if key != error.key]
            said = (
                f"The key ending in {error.key[-4:]} of project {project.name} was rejected ({self.mask(str(error))})"
            )
            if len(project.clients) == before:
                return  # another thread was first; it says which key and why
            print(f"{said}; it is set aside.", flush=True)
            none_left = not project.clients
        if none_left:
            names = ", ".join(name for p in self._settings.projects if p.name == project.name for name in p.keys)
            self._set_aside(project, Hopeless(f"{said}. Set a valid key in {names}."))

    def cut_off(self, error: Unreachable) -> Hopeless:
        """What to tell the user where no connection comes about."""
        return Hopeless(
            f"No connection to {self._server}: {error}. Is it running, and has this machine a way there? Compute nodes often "
            f"have no internet: set HTTPS_PROXY where your site has a proxy, or generate on a node that has internet. No "
            f"product was given up; the same command goes on."
        )

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._cancelled():
                raise Cancelled
            time.sleep(min(left, 0.5))


def _pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)


def read_keys(settings: GenerateSettings, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The keys of every project.

    Raises:
        UserError: a project has none, or one that cannot be sent; names the variables to set.
    """
    found: dict[str, list[str]] = {}
    for project in settings.projects:
        keys = [environment[name].strip() for name in project.keys if environment.get(name, "").strip()]
        for name in project.keys:
            # The libraries' own errors about such a key would show it.
            if not re.fullmatch(r"[!-~]*", environment.get(name, "").strip()):
                raise UserError(
                    f"{name} holds a character that no key has, such as a space or a line end: set it to the key alone."
                )
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


def with_deadline(call: Callable[[], T], seconds: float, cancelled: Callable[[], bool] | None = None) -> T:
    """What ``call`` returns or raises. A server that drips a byte a second passes every time-out of the libraries, which count
    from byte to byte; so the call has a thread of its own, which is left behind. So it is, with `Cancelled`, once ``cancelled``."""
    outcome: list[Any] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)
        done.set()

    threading.Thread(target=run, daemon=True, name="request").start()
    end = time.monotonic() + seconds
    while not done.wait(min(0.5, max(0.0, end - time.monotonic()))):
        if cancelled is not None and cancelled():
            raise Cancelled
        if time.monotonic() >= end:
            raise TryAgain("no answer in time", reason="timeout")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    found: T = outcome[0]
    return found
