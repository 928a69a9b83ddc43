"""How work on one item ends, and the errors that a user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from data_prep.records import Reply

ItemT = TypeVar("ItemT")


class UserError(ValueError):
    """An error that the user can fix. The message says what is wrong, where, and what to do; no traceback is shown."""


class UserErrors(UserError):
    """Several such errors that were found together.

    Attributes:
        findings: one or more sentences each.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = list(findings)
        several = f"{len(findings)} problems:\n  - " if len(findings) > 1 else ""
        super().__init__(several + "\n  - ".join(findings))


@contextmanager
def collected(findings: list[str]) -> Iterator[None]:
    """Note the user's errors of a block instead of ending with the first, so that all can be said at once."""
    try:
        yield
    except UserErrors as errors:
        findings += errors.findings
    except UserError as error:
        findings.append(str(error))


@dataclass(frozen=True, slots=True)
class Ok:
    """An item that succeeded, and its result: `ImageFacts`, `Reply` or `Prediction`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that failed: a counted reason, what a person needs to look it up, and whether trying again can help."""

    reason: str
    detail: str = ""
    retry: bool = False
    value: Reply | None = None  # a reply that was paid for and cannot be used


class Recorder(Protocol):
    """Takes the outcome of one item. Safe to call from several threads."""

    def __call__(self, outcome: Ok | Failed, *, durable: bool = False) -> None:
        """Append the outcome; with ``durable`` return only when it is on the disk."""


@dataclass(frozen=True, slots=True)
class Todo(Generic[ItemT]):
    """An item that is not done yet, as the shard loop hands it to a stage."""

    item: ItemT
    record: Recorder
    variant: str = ""  # which of several answers is missing; evaluate: base or lora, one todo each, side by side
    prior_replies: tuple[Reply, ...] = ()  # generate: stored replies that break the rules; they count against max_asks
    made_from: str = ""  # digest of the content that its record is made from


class Interrupted(Exception):
    """Work stopped early on request. What was done is on disk; starting again resumes."""


def unknown_name(name: str, known: Sequence[str], kind: str) -> str:
    """The sentence for a name that does not exist: the nearest known one, and all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no {kind} {name!r}.{hint} Known: {', '.join(known)}."
