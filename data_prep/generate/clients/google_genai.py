"""Gemini through google-genai, the maintained library; also its Batch API, at half the price."""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import orjson
from pydantic import BaseModel

from data_prep.generate import models
from data_prep.generate.clients.base import BatchState, RawReply, Request
from data_prep.generate.clients.errors import GeneratorError, classify, connection_error, not_a_reply
from data_prep.generate.clients.gemini_reply import read_reply
from data_prep.generate.settings import RequestSettings

if TYPE_CHECKING:
    from google.genai.types import ThinkingConfig  # the library takes seconds to import

_FINISHED = {"succeeded", "partially_succeeded", "failed", "cancelled", "expired"}
# Errors in a batch's results carry codes of gRPC, not of HTTP: 3 is an invalid argument, 8 an exhausted quota.
_HTTP_STATUS = {3: 400, 5: 404, 7: 403, 8: 429, 13: 500, 14: 503}


class Client:
    """The API with one key; see `data_prep.generate.clients.base.BatchClient`."""

    def __init__(self, settings: RequestSettings, key: str, endpoint: str | None) -> None:
        from google import genai
        from google.genai import types

        self._types = types
        self._model = settings.model
        options = types.HttpOptions(
            base_url=endpoint,
            api_version=settings.api_version,
            timeout=int(settings.timeout * 1000),  # milliseconds
            client_args={"follow_redirects": False},  # httpx would send the key's header to the new address
        )
        self._client = genai.Client(api_key=key, http_options=options)
        resolution = settings.sent_resolution
        self._configuration = types.GenerateContentConfig(
            temperature=settings.temperature,
            response_mime_type="application/json",
            thinking_config=_thinking(settings),
            media_resolution=types.MediaResolution(f"MEDIA_RESOLUTION_{resolution.upper()}") if resolution else None,
        )
        # A field beside generationConfig, which a batch's requests have not: a batch is a tier of its own.
        tier = types.ServiceTier.FLEX if settings.tier == "flex" else None
        self._single = self._configuration.model_copy(update={"service_tier": tier})

    def generate(self, request: Request) -> RawReply:
        """Send one request."""
        contents: list[Any] = [request.prompt]
        if request.image:
            contents.insert(0, self._types.Part.from_bytes(data=request.image, mime_type=request.mime_type))
        config = self._single.model_copy(update=_of_request(request))
        with _translated_errors():
            reply = self._client.models.generate_content(model=self._model, contents=contents, config=config)
        return read_reply(_as_json(reply))

    def encode(self, key: str, request: Request) -> bytes:
        """One request as a line of a batch's input file, in REST's spelling."""
        parts: list[object] = [{"text": request.prompt}]
        if request.image:
            image = {"mimeType": request.mime_type, "data": base64.b64encode(request.image).decode()}
            parts.insert(0, {"inlineData": image})
        contents = [{"role": "user", "parts": parts}]
        config = self._configuration.model_copy(update=_of_request(request))
        body = {"key": key, "request": {"contents": contents, "generationConfig": _as_json(config)}}
        return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)

    def decode(self, line: bytes) -> tuple[str, RawReply | Exception]:
        """The key of a line of a batch's results, and the reply or the error in it."""
        try:
            result = orjson.loads(line)
            key = str(result["key"])
            if error := result.get("error"):
                code = int(error.get("code") or 0)
                status = _HTTP_STATUS.get(code, code if code >= 400 else 500)
                return key, classify(status, str(error.get("message", "")), error.get("details") or [])
            return key, read_reply(result["response"])
        except GeneratorError as error:
            return key, error
        except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"not a result of a batch ({type(error).__name__}: {error})") from error

    def upload(self, file: BinaryIO, title: str) -> str:
        """Upload a batch's input file; the server keeps it for two days."""
        config = self._types.UploadFileConfig(display_name=title, mime_type="application/jsonl")
        with _translated_errors():
            found = self._client.files.upload(file=cast(io.IOBase, file), config=config)
        if found.name is None:
            raise not_a_reply("the upload has no name")
        return found.name

    def create_batch(self, upload: str, title: str) -> str:
        """Create a batch from an uploaded file."""
        config = self._types.CreateBatchJobConfig(display_name=title)
        with _translated_errors():
            job = self._client.batches.create(model=self._model, src=upload, config=config)
        if job.name is None:
            raise not_a_reply("the batch has no name")
        return job.name

    def find_batch(self, title: str) -> str | None:
        """Look through the project's batches: the API has no search by title."""
        with _translated_errors():
            for job in self._client.batches.list(config=self._types.ListBatchJobsConfig(page_size=100)):
                if job.display_name == title:
                    return job.name
        return None

    def batch_state(self, batch: str) -> BatchState:
        """The state of a batch; ``gone`` where the server does not know it (any more)."""
        from google.genai import errors

        try:
            with _translated_errors():
                job = self._client.batches.get(name=batch)
        except Exception as error:
            if isinstance(error.__cause__, errors.APIError) and error.__cause__.code == 404:
                return BatchState(finished=True, name="gone", detail=str(error.__cause__.message))
            raise
        name = job.state.name.removeprefix("JOB_STATE_").lower() if job.state else "unknown"
        results = job.dest.file_name if job.dest else None
        detail = str(job.error.message or "") if job.error else ""
        return BatchState(finished=name in _FINISHED, name=name, results=results, detail=detail)

    def download(self, results: str, file: BinaryIO) -> bool:
        """Write the results of a batch into ``file``, in chunks."""
        from google.genai import errors

        try:
            with _translated_errors():
                self._client.files.download(file=results, destination=cast(io.IOBase, file))
        except Exception as error:
            cause = error.__cause__
            # For a deleted file Google answers 403, "You do not have permission to access the File ... or it may not exist."
            if isinstance(cause, errors.APIError) and (cause.code == 404 or "may not exist" in str(cause.message)):
                return False
            raise
        return True

    def cancel_batch(self, batch: str) -> None:
        """Ask the server to cancel a batch."""
        with _translated_errors():
            self._client.batches.cancel(name=batch)


def _of_request(request: Request) -> dict[str, object]:
    """What a request's configuration has of its own."""
    return {"max_output_tokens": request.max_output_tokens, "response_json_schema": request.schema}


def _thinking(settings: RequestSettings) -> ThinkingConfig | None:
    """How much to think: a level for Gemini 3, a number of tokens for older models."""
    from google.genai import types

    card, level = models.card(settings.model), settings.sent_thinking
    if card is None or level is None:
        return None
    if card.thinking == "budget":
        return types.ThinkingConfig(thinking_budget=card.levels[level])
    return types.ThinkingConfig(thinking_level=types.ThinkingLevel(level.upper()))


def _as_json(message: BaseModel) -> dict[str, Any]:
    """One of the library's types as the API's JSON."""
    return message.model_dump(mode="json", by_alias=True, exclude_none=True)


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn the library's exceptions into those of `data_prep.generate.clients.errors`."""
    from google.genai import errors

    try:
        yield
    except errors.APIError as error:
        body = error.details if isinstance(error.details, dict) else {}
        inner = body.get("error", body)
        raise classify(
            error.code, str(error.message), inner.get("details") if isinstance(inner, dict) else ()
        ) from error
    except _http_errors() as error:
        raise connection_error(error) from error
    except (KeyError, ValueError, AttributeError, TypeError) as error:  # JSON of another shape, as a proxy's
        raise not_a_reply(error) from error


def _http_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the HTTP library below google-genai: httpx2 in newer versions, httpx in older ones."""
    libraries = [importlib.import_module(m) for m in ("httpx2", "httpx") if importlib.util.find_spec(m)]
    return tuple(library.HTTPError for library in libraries)
