"""The contract of a question generator. A new generator is one file in this folder with a class ``Client``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import data_prep.generate.clients
from data_prep.generate.qa_parser import CATEGORIES, PAIRS
from data_prep.generate.settings import RequestSettings
from data_prep.outcomes import UserError, unknown_name
from data_prep.records import Usage

# The structured output that is requested of a generator of questions, as a JSON schema.
PAIRS_SCHEMA: Mapping[str, object] = {
    "type": "array",
    "minItems": PAIRS,
    "maxItems": PAIRS,
    "items": {
        "type": "object",
        "properties": {
            "question": {"type": "string"},
            "answer": {"type": "string"},
            "category": {"type": "string", "enum": list(CATEGORIES)},
        },
        "required": ["question", "answer", "category"],
    },
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a model: a prompt, mostly about an image."""

    prompt: str
    image: bytes  # the file's own bytes, never re-encoded; b"": none
    mime_type: str
    max_output_tokens: int  # thoughts included
    schema: Mapping[str, object] = field(default_factory=lambda: PAIRS_SCHEMA)  # of the reply


@dataclass(frozen=True, slots=True)
class RawReply:
    """The answer to one request, unparsed."""

    text: str
    finish_reason: str  # in Gemini's words, for every client: STOP, MAX_TOKENS, ...
    usage: Usage
    model_version: str = ""  # that answered; "": the API does not say
    model_status: str = ""  # STABLE, LEGACY, DEPRECATED, ...; "": the API does not say
    tier: str = ""  # that served it: standard, flex, priority; "": the API does not say


class ClientProtocol(Protocol):
    """Access to one API with one key. Safe to use from several threads."""

    def __init__(self, settings: RequestSettings, key: str, endpoint: str | None) -> None: ...

    def generate(self, request: Request) -> RawReply:
        """Send one request, without retries of its own.

        Raises:
            GeneratorError, UserError: one of the classes of `data_prep.generate.clients.errors`.
        """


@dataclass(frozen=True, slots=True)
class BatchState:
    """The state of a batch on the server."""

    finished: bool  # it will not change any more
    name: str  # in the server's words: succeeded, failed, expired, running, ...; gone: the server does not know it
    results: str | None = None  # the server's name of the file with the replies
    detail: str = ""


class BatchClient(ClientProtocol, Protocol):
    """A client whose API also takes many requests at once, at a lower price, and answers them within a day."""

    def encode(self, key: str, request: Request) -> bytes:
        """One request as a line of a batch's input file."""

    def decode(self, line: bytes) -> tuple[str, RawReply | Exception]:
        """The key of a line of results, and its reply or what `generate` would have raised.

        Raises:
            ValueError: the line is not a result.
        """

    def upload(self, file: BinaryIO, title: str) -> str:
        """Upload a batch's input file, which is free; the server's name of it."""

    def create_batch(self, upload: str, title: str) -> str:
        """Create a batch from an uploaded file; the server's name of it. Calling this twice is billed twice."""

    def find_batch(self, title: str) -> str | None:
        """The server's name of the batch with this title, if there is one."""

    def batch_state(self, batch: str) -> BatchState:
        """The state of a batch."""

    def download(self, results: str, file: BinaryIO) -> bool:
        """Write the results of a batch into ``file``; False where the server does not have them (any more)."""

    def cancel_batch(self, batch: str) -> None:
        """Ask the server to cancel a batch."""


def known_generators() -> list[str]:
    """The generators that there are: the files of this folder, but for those that all share."""
    names = [module.name for module in pkgutil.iter_modules(data_prep.generate.clients.__path__)]
    return sorted(name for name in names if name not in ("base", "errors", "gemini_reply"))


def client_class(name: str) -> type[ClientProtocol]:
    """The client of a generator.

    Raises:
        UserError: there is no such generator.
    """
    known = known_generators()
    name = name.replace("-", "_")  # libraries are written google-genai, files google_genai
    if name not in known:
        raise UserError(f"generate.generator: {unknown_name(name, known, 'generator')}")
    found: type[ClientProtocol] = importlib.import_module(f"data_prep.generate.clients.{name}").Client
    return found


def mime_type(image: bytes) -> str:
    """The media type of an image by its first bytes; JPEG where they are unknown."""
    if image.startswith(b"\x89PNG"):
        return "image/png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    if image.startswith(b"GIF8"):
        return "image/gif"
    return "image/jpeg"
