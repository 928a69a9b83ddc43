"""The contract of a question generator. A new one is one file in this folder with a class ``Client``; nothing else changes."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import data_prep.generate.clients
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import UserError

__all__ = [
    "RESPONSE_SCHEMA",
    "BatchClient",
    "BatchState",
    "ClientProtocol",
    "RawReply",
    "Request",
    "client_class",
    "known_generators",
    "mime_type",
]

# What structured output asks for, as OpenAPI; clients translate it into their own words.
RESPONSE_SCHEMA: dict[str, Any] = {
    "type": "ARRAY",
    "items": {
        "type": "OBJECT",
        "properties": {
            "question": {"type": "STRING"},
            "answer": {"type": "STRING"},
            "category": {"type": "STRING", "enum": ["easy", "medium", "hard"]},
        },
        "required": ["question", "answer", "category"],
    },
}


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model: a prompt about an image."""

    prompt: str
    image: bytes  # the file's own bytes, never encoded again
    mime_type: str


@dataclass(frozen=True, slots=True)
class RawReply:
    """What came back, as it came."""

    text: str
    finish_reason: str  # STOP, MAX_TOKENS, ...
    input_tokens: int
    output_tokens: int
    model: str


class ClientProtocol(Protocol):
    """Talks to one API with one key. Safe to use from several threads."""

    def __init__(self, settings: GenerateSettings, key: str, endpoint: str | None) -> None: ...

    def ask(self, request: Request) -> RawReply:
        """Send one request, without retries of its own.

        Raises:
            GeneratorError, UserError: one of the classes of `data_prep.generate.clients.errors`.
        """
        ...


@dataclass(frozen=True, slots=True)
class BatchState:
    """What a server says of a batch."""

    over: bool  # it will not change any more
    name: str  # succeeded, failed, expired, gone, running, ... in the server's word
    results: str | None = None  # the server's name of the file with the replies
    detail: str = ""


class BatchClient(ClientProtocol, Protocol):
    """A client whose API also takes many requests at once, to be answered within a day, for less."""

    def encode(self, key: str, request: Request) -> bytes:
        """One request as a line of a batch's file."""
        ...

    def decode(self, line: bytes) -> tuple[str, RawReply | Exception]:
        """Of a line of the results the request's key, and its reply or what `ask` would have raised.

        Raises:
            ValueError: the line is no result.
        """
        ...

    def upload(self, file: BinaryIO, title: str) -> str:
        """Hand in a batch's file; the server's name of it. Nothing is paid for that."""
        ...

    def create_batch(self, upload: str, title: str) -> str:
        """Have a file that was handed in answered; the server's name of the batch. Called twice, it is paid twice."""
        ...

    def find_batch(self, title: str) -> str | None:
        """The server's name of the batch that was created with this title, if there is one."""
        ...

    def batch_state(self, batch: str) -> BatchState:
        """How far a batch is."""
        ...

    def download(self, results: str, file: BinaryIO) -> bool:
        """Write the replies of a batch into ``file``; False where the server has no such file (any more)."""
        ...

    def cancel_batch(self, batch: str) -> None:
        """Ask the server to give a batch up."""
        ...


def known_generators() -> list[str]:
    """The files of this folder that hold a client."""
    names = [module.name for module in pkgutil.iter_modules(data_prep.generate.clients.__path__)]
    return sorted(name for name in names if name not in ("base", "errors"))


def client_class(name: str) -> type[ClientProtocol]:
    """The client of a generator.

    Raises:
        UserError: there is no such generator; lists those that there are.
    """
    known = known_generators()
    name = name.replace("-", "_")  # libraries are written google-genai, files google_genai
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"generate.generator: there is no {name!r}.{hint} Known: {', '.join(known)}.")
    found: type[ClientProtocol] = importlib.import_module(f"data_prep.generate.clients.{name}").Client
    return found


def mime_type(image: bytes) -> str:
    """The type of an image from its first bytes; JPEG where they say nothing."""
    if image.startswith(b"\x89PNG"):
        return "image/png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    if image.startswith(b"GIF8"):
        return "image/gif"
    return "image/jpeg"
