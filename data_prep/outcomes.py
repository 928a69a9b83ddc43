"""How work on one item ends, and the errors that a user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class UserError(ValueError):
    """A mistake that the user can mend: its message says what is wrong, where, and what to do. Shown without a traceback."""


@dataclass(frozen=True, slots=True)
class Ok:
    """An item that was worked on successfully, and what came of it."""

    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that was not: a counted reason, what a person needs to look it up, and whether trying again can help."""

    reason: str
    detail: str = ""
    retry: bool = False
    value: dict[str, Any] | None = None  # what was obtained all the same: a paid reply that cannot be used


class Emit(Protocol):
    """How a stage hands over the outcome of one item; safe to call from several threads."""

    def __call__(self, key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
        """Append the outcome; with ``durable`` return only when it is on the disk."""


class Interrupted(Exception):
    """Work stopped before its end because it was asked to; what was done is on disk, and starting it again goes on."""


def unknown_name(name: str, known: Sequence[str], kind: str) -> str:
    """The sentence for a name that does not exist: the nearest known one, and all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no {kind} {name!r}.{hint} Known: {', '.join(known)}."
