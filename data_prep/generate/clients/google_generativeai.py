"""Gemini through google-generativeai, over REST. Google has ended its support; google_genai is the successor.

The library always speaks v1beta. It can send neither a thinking level nor a media resolution: every image costs its full tokens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from data_prep.generate.clients.base import RawReply, Request
from data_prep.generate.clients.errors import classify, connection_error, not_a_reply
from data_prep.generate.clients.gemini_reply import read_reply
from data_prep.generate.settings import RequestSettings


class Client:
    """The API with one key. The library keeps its key in a global, so each client has a service client of its own."""

    def __init__(self, settings: RequestSettings, key: str, endpoint: str | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about the end of support
            import google.generativeai as genai
            from google.generativeai.client import _ClientManager

        manager = _ClientManager()
        options = {"api_endpoint": endpoint} if endpoint else None
        manager.configure(api_key=key, transport="rest", client_options=options)
        self._model = genai.GenerativeModel(settings.model)
        client: Any = manager.get_default_client("generative")
        # requests would send the key's header to the address of a redirect, and has no other switch for a session.
        client.transport._session.max_redirects = 0
        self._model._client = client
        self._options: Any = {"retry": None, "timeout": settings.timeout}  # retries are ours
        self._configuration: Any = {"response_mime_type": "application/json"}
        if settings.temperature is not None:
            self._configuration["temperature"] = settings.temperature

    def generate(self, request: Request) -> RawReply:
        """Send one request."""
        import requests
        from google.api_core import exceptions
        from google.protobuf.json_format import ParseError

        parts: list[Any] = [request.prompt]
        if request.image:
            parts.insert(0, {"mime_type": request.mime_type, "data": request.image})
        limits: Any = {"max_output_tokens": request.max_output_tokens, "response_schema": _openapi(request.schema)}
        try:
            reply = self._model.generate_content(
                parts,
                generation_config={**self._configuration, **limits},
                request_options=self._options,
            )
        except exceptions.GoogleAPICallError as error:
            details = [_as_json(detail) for detail in error.details or []]
            # For a status that it does not know, such as 402, the library puts the address before the server's words.
            words = re.sub(r"^(GET|POST) \S+: ", "", str(error.message))
            raise classify(int(error.code or 500), words, details) from error
        except requests.TooManyRedirects as error:
            raise classify(307, "the server redirects to another address", []) from error
        except (requests.JSONDecodeError, ParseError) as error:  # before RequestException, its base: not JSON
            raise not_a_reply(error) from error
        except requests.RequestException as error:
            raise connection_error(error) from error
        except (ValueError, AttributeError, TypeError) as error:  # JSON of another shape, as a proxy's
            raise not_a_reply(error) from error
        return read_reply(_as_json(reply._result._pb))


def _openapi(schema: Mapping[str, object]) -> dict[str, object]:
    """A JSON schema in the library's spelling of OpenAPI: types in capitals, names with underscores."""
    spelled = {"minItems": "min_items", "maxItems": "max_items"}
    found: dict[str, object] = {}
    for name, value in schema.items():
        found[spelled.get(name, name)] = _openapi(value) if isinstance(value, Mapping) else value
    if isinstance(kind := found.get("type"), str):
        found["type"] = kind.upper()
    return found


def _as_json(detail: Any) -> dict[str, Any]:
    """A protobuf message as the REST API's JSON; one of Google's error details may be an object already."""
    if isinstance(detail, dict):
        return detail
    if not hasattr(detail, "DESCRIPTOR"):
        return {}
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(detail)
    return found
