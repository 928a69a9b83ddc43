"""Gemini through google-genai, the maintained library."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from data_prep.generators.base import RESPONSE_SCHEMA, RawReply, Request
from data_prep.generators.errors import ItemRefused, TryAgain, classify
from data_prep.settings_generate import GenerateSettings


class Client:
    """One key."""

    def __init__(self, settings: GenerateSettings, key: str, endpoint: str | None) -> None:
        from google import genai
        from google.genai import types

        self._types = types
        self._model = settings.model
        options = types.HttpOptions(
            base_url=endpoint,
            timeout=int(settings.timeout * 1000),
            client_args={"follow_redirects": False},  # the key's header would go to wherever the redirect leads
        )
        self._client = genai.Client(api_key=key, http_options=options)
        self._configuration = types.GenerateContentConfig(
            temperature=settings.temperature,
            max_output_tokens=settings.max_output_tokens,
            response_mime_type="application/json",
            response_schema=RESPONSE_SCHEMA,
        )

    def ask(self, request: Request) -> RawReply:
        """Send one request; see `data_prep.generators.base.Client`."""
        from google.genai import errors

        parts: list[Any] = [
            self._types.Part.from_bytes(data=request.image, mime_type=request.mime_type),
            request.prompt,
        ]
        try:
            reply = self._client.models.generate_content(model=self._model, contents=parts, config=self._configuration)
        except errors.APIError as error:
            body = error.details if isinstance(error.details, dict) else {}
            inner = body.get("error", body)
            raise classify(error.code, str(error.message), inner.get("details", [])) from error
        except _http_errors("TimeoutException") as error:
            raise TryAgain("no answer in time", reason="timeout") from error
        except _http_errors("HTTPError") as error:
            raise TryAgain(f"connection: {type(error).__name__}", reason="connection") from error
        except ValueError as error:
            raise TryAgain(f"not a reply of the API: {type(error).__name__}", reason="not_json") from error
        usage = reply.usage_metadata
        paid_in = (usage.prompt_token_count or 0) if usage else 0
        paid_out = (usage.candidates_token_count or 0) if usage else 0
        if not reply.candidates:
            feedback = reply.prompt_feedback
            blocked = feedback.block_reason if feedback else None
            raise ItemRefused("blocked" if blocked else "no_candidate", str(blocked or ""), input_tokens=paid_in)
        candidate = reply.candidates[0]
        finish = candidate.finish_reason.name if candidate.finish_reason else "UNKNOWN"
        found = candidate.content.parts if candidate.content else None
        text = "".join(part.text or "" for part in found or [])
        if not text and finish != "MAX_TOKENS":
            raise ItemRefused(f"finished_{finish.lower()}", "no text", input_tokens=paid_in)
        return RawReply(text, finish, paid_in, paid_out, self._model)


def _http_errors(name: str) -> tuple[type[Exception], ...]:
    """An exception of the HTTP library below: httpx2 in newer versions of google-genai, httpx in older ones."""
    libraries = [importlib.import_module(m) for m in ("httpx2", "httpx") if importlib.util.find_spec(m)]
    return tuple(getattr(library, name) for library in libraries)
