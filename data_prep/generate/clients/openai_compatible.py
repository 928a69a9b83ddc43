"""Any server that implements OpenAI's chat completions, such as vLLM or Ollama on a GPU node without internet.

``generate: {generator: openai_compatible, endpoint: http://node7:8000, model: Qwen/Qwen3-VL-8B-Instruct}``

Google has such an API, too: ``endpoint: https://generativelanguage.googleapis.com/v1beta/openai``.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import httpx

from data_prep.generate.clients.base import RawReply, Request
from data_prep.generate.clients.errors import ItemRefused, classify, connection_error, not_a_reply
from data_prep.generate.settings import RequestSettings
from data_prep.outcomes import UserError
from data_prep.records import Usage

_FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}


class Client:
    """The API at one endpoint, with one key or none."""

    def __init__(self, settings: RequestSettings, key: str, endpoint: str | None) -> None:
        if endpoint is None:
            raise UserError(
                "generate.endpoint: openai_compatible needs the address of the server, such as http://node7:8000"
            )
        self._settings = settings
        self._url = f"{base_url(endpoint)}/chat/completions"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=settings.timeout)

    def generate(self, request: Request) -> RawReply:
        """Send one request."""
        content: list[dict[str, object]] = [{"type": "text", "text": request.prompt}]
        if request.image:
            image = f"data:{request.mime_type};base64,{base64.b64encode(request.image).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": image}})
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": request.max_output_tokens,
            "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": request.schema}},
        }
        if self._settings.temperature is not None:
            body["temperature"] = self._settings.temperature
        if level := self._settings.sent_thinking:
            body["reasoning_effort"] = level
        try:
            response = self._http.post(self._url, json=body)
            if response.status_code != 200:
                raise _error(response)
            reply = response.json()
            choice = reply["choices"][0]
            usage = reply.get("usage") or {}
            thoughts = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
            used = Usage(
                input_tokens=int(usage.get("prompt_tokens") or 0),
                output_tokens=int(usage.get("completion_tokens") or 0),  # of OpenAI's count, thoughts are a part
                thought_tokens=int(thoughts),
            )
            text = choice["message"].get("content") or ""
            if isinstance(text, list):  # some servers answer in parts
                text = "".join(part.get("text") or "" for part in text)
        except httpx.HTTPError as error:
            raise connection_error(error) from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):  # of `_error`; it is a ValueError, too
                raise
            raise not_a_reply(error) from error
        finish = str(choice.get("finish_reason"))
        raw = RawReply(
            text=text,
            finish_reason=_FINISH_REASONS.get(finish, finish.upper()),
            usage=used,
            model_version=str(reply.get("model") or "").removeprefix("models/"),
            tier=str(reply.get("service_tier") or ""),
        )
        if finish == "content_filter":
            raise ItemRefused("blocked", finish, reply=raw)
        return raw


def base_url(endpoint: str) -> str:
    """The address that ``/chat/completions`` follows: the endpoint, with /v1 after it where that is missing."""
    endpoint = endpoint.rstrip("/").removesuffix("/chat/completions")
    return (
        endpoint if re.search(r"/(v\d\w*|openai)$", endpoint) else f"{endpoint}/v1"
    )  # /v1, or Google's /v1beta/openai


def _error(response: httpx.Response) -> Exception:
    """The error in a response, whose body may have any shape."""
    try:
        body = response.json()
    except ValueError:
        body = None
    found = body.get("error") if isinstance(body, dict) else None
    error = found if isinstance(found, dict) else {"message": found}
    given = error.get("details")
    details = given if isinstance(given, list) else []
    if "retry-after" in response.headers:  # these servers say in a header what Google says in RetryInfo
        details = [*details, {"retryDelay": response.headers["retry-after"]}]
    return classify(response.status_code, str(error.get("message") or response.reason_phrase), details)
