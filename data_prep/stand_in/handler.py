"""One HTTP request to the stand-in: ``generateContent``, the Files and Batch API, or OpenAI's chat completions."""

from __future__ import annotations

import hashlib
import socket
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import orjson

from data_prep.stand_in import faults as fault_kinds
from data_prep.stand_in import messages
from data_prep.stand_in.batches import Batches
from data_prep.stand_in.state import State
from data_prep.verify.second_opinion import asked_in

HANG_SECONDS, DRIP_SECONDS = 600.0, 0.2
_ANNOUNCED = 1000  # bytes that a reply says it has, and does not send
_DISABLED = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED"}
_ERRORS: dict[str, tuple[int, str, str]] = {  # status, its name, message, details
    "bare_429": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    "spending_cap": (
        429,
        "RESOURCE_EXHAUSTED",
        "Your project has exceeded its monthly spending cap. Please go to AI Studio at https://ai.studio/spend to manage it.",
    ),
    "status_402": (
        402,
        "FAILED_PRECONDITION",
        "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to manage your project and "
        "billing.",
    ),
    "api_disabled": (
        403,
        "PERMISSION_DENIED",
        "Generative Language API has not been used in project 123456 before or it is disabled. Enable it by visiting "
        "https://console.developers.google.com/apis/api/generativelanguage.googleapis.com then retry.",
    ),
    "location": (400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    "status_500": (500, "INTERNAL", "An internal error has occurred."),
    "status_503": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
}
_JSON = {"content-type": "application/json"}


class Handler(BaseHTTPRequestHandler):
    """Answers one request; a subclass sets ``state`` and ``batches``."""

    protocol_version = "HTTP/1.1"
    state: State
    batches: Batches

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing: the stand-in has a log of its own."""

    def do_POST(self) -> None:
        """Answer one request, well or with a fault."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith("/upload/"):
            self._upload(body)
            return
        try:
            request = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError:
            self._error(400, "INVALID_ARGUMENT", "the body is not JSON")
            return
        path = self.path.partition("?")[0]
        if path.endswith(":generateContent"):
            model = path.rpartition("/")[2].removesuffix(":generateContent")
            self._answer(messages.gemini_image(request), model, messages.gemini_asked(request), messages.gemini_reply)
        elif path.endswith("/chat/completions"):
            model = str(request.get("model"))
            self._answer(messages.openai_image(request), model, messages.openai_asked(request), messages.openai_reply)
        elif path.endswith(":batchGenerateContent"):
            self._create_batch(path.rpartition("/")[2].partition(":")[0], request)
        elif path.endswith(":cancel"):
            with self.state.lock:
                known = self.batches.cancel(_named(path, "batches").removesuffix(":cancel"))
            self._found({} if known else None)
        else:
            self._error(404, "NOT_FOUND", f"no such method: {self.path}")

    def do_GET(self) -> None:
        """A batch, the list of all, a file of results, or the list of models."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if not self._key_is_valid(time.time()):
            return
        data, found = None, None
        if url.path.endswith("/models"):
            models = tuple(self.state.options.models or messages.MODELS)
            shown = messages.model_list if "x-goog-api-key" in self.headers else messages.openai_model_list
            self._found(shown(models))
            return
        with self.state.lock:
            if url.path.endswith(":download"):
                data = self.batches.file(_named(url.path, "files").removesuffix(":download"))
            elif url.path.endswith("/batches"):
                found = self.batches.list(int(query.get("pageSize", 50)), query.get("pageToken", ""))
            else:
                found = self.batches.get(_named(url.path, "batches"))
        if data is not None:
            self._send(200, data, {"content-type": "application/octet-stream"})
        else:
            self._found(found)

    def _key(self) -> str:
        """Google's clients send the key in a header of their own, OpenAI's as a bearer token."""
        return self.headers.get("x-goog-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")

    def _found(self, body: object | None) -> None:
        if body is None:
            self._error(404, "NOT_FOUND", f"Requested entity was not found: {self.path}")
        else:
            self._send(200, orjson.dumps(body))

    def _upload(self, body: bytes) -> None:
        """Google's resumable upload: the first request asks for an address, the others send chunks to it."""
        if not self._key_is_valid(time.time()):
            return
        command = self.headers.get("x-goog-upload-command", "")
        with self.state.lock:
            if command == "start":
                name = self.batches.upload(None, b"")
            else:
                name = self.batches.upload(_named(self.path, "files"), body)
        final = "finalize" in command
        address = {"x-goog-upload-url": f"http://{self.headers['host']}/upload/{name}"}
        status = {"x-goog-upload-status": "final" if final else "active"}
        self._send(200, orjson.dumps({"file": {"name": name}} if final else {}), _JSON | address | status)

    def _create_batch(self, model: str, request: dict[str, Any]) -> None:
        arrived, key = time.time(), self._key()
        if not self._key_is_valid(arrived) or not self._has_model(model, arrived):
            return
        with self.state.lock:
            fault, job = self.batches.create(model, key, request)
        if fault == "full":
            self._too_many_requests("minute")
        elif job is None:
            self._error(400, "INVALID_ARGUMENT", "the batch names no file that was uploaded")
        elif fault == "unconfirmed":  # the batch exists, and the client cannot know
            self.state.note(arrived, "batch_unconfirmed", key, batch=job.name)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.state.note(arrived, "batch_created", key, batch=job.name)
            self._send(200, orjson.dumps(job.operation()))

    def _key_is_valid(self, arrived: float) -> bool:
        """Whether the request has a valid key; answers it where it has not."""
        keys = self.state.options.keys
        if keys is None or self._key() in keys:
            return True
        self.state.note(arrived, "bad_key", self._key())
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        self._error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", [info])
        return False

    def _has_model(self, model: str, arrived: float) -> bool:
        """Whether a model answers in the version of the API that was asked; answers the request where it does not."""
        options, version = self.state.options, self.path.split("/")[1]
        if model in options.retired:
            self.state.note(arrived, "retired", self._key())
            self._retired(model)
        elif version not in options.api_versions or (options.models is not None and model not in options.models):
            self.state.note(arrived, "bad_model", self._key())
            self._error(
                404, "NOT_FOUND", f"models/{model} is not found for API version {version}. Call ListModels to see more."
            )
        else:
            return True
        return False

    def _retired(self, model: str) -> None:
        words = f"This model models/{model} is no longer available. Please update your code to use a newer model."
        self._error(404, "NOT_FOUND", words)

    def _answer(
        self,
        image: bytes | None,
        model: str,
        asked: messages.Asked,
        reply: Callable[[str | None, str, str, messages.Manner], object],
    ) -> None:
        state, arrived, key = self.state, time.time(), self._key()
        if not self._key_is_valid(arrived) or not self._has_model(model, arrived):
            return
        if image is None and not asked_in(
            asked.prompt
        ):  # `doctor` tries a key, or a task asks whether anything is answered
            _, fault = state.draw("")
            state.note(arrived, fault if fault in fault_kinds.TRANSPORT else "no_image", key)
            if fault in fault_kinds.TRANSPORT:
                self._fail(fault, model)
                return
            self._send(200, orjson.dumps(reply("[]", "STOP", model, messages.Manner())))
            return
        digest = hashlib.sha256(image).hexdigest() if image else ""
        if quota := state.admit():
            state.note(arrived, f"quota_{quota}", key, image=digest)
            self._too_many_requests(quota)
            return
        answer = state.answer(digest, asked)
        time.sleep(state.options.latency)
        state.note(arrived, answer.fault or "ok", key, image=digest, answer=answer)
        if answer.fault == "unknown_image":
            self._error(400, "INVALID_ARGUMENT", f"the stand-in has no answers for the image {digest}")
        elif answer.fault in fault_kinds.TRANSPORT:
            self._fail(answer.fault, model)
        else:
            self._send(200, orjson.dumps(reply(answer.text, answer.finish_reason, model, answer.manner)))

    def _fail(self, fault: str, model: str) -> None:
        if fault == "retired":
            self._retired(model)
        elif fault == "status_429":
            self._too_many_requests("minute")
        elif fault in _ERRORS:
            code, status, words = _ERRORS[fault]
            self._error(code, status, words, [_DISABLED] if fault == "api_disabled" else [])
        elif fault == "html":
            self._send(200, b"<html><body>Sign in to the network</body></html>", {"content-type": "text/html"})
        elif fault == "hang":
            time.sleep(HANG_SECONDS)
            self.close_connection = True
        elif fault == "break_off":  # the body is shorter than its header says
            self._head(200, _ANNOUNCED)
            self.wfile.write(b'{"candidates": [')
            self.close_connection = True
        elif fault == "drip":
            self._head(200, _ANNOUNCED)
            for _ in range(_ANNOUNCED):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(DRIP_SECONDS)

    def _too_many_requests(self, quota: str) -> None:
        options = self.state.options
        name, limit = {
            "minute": ("GenerateRequestsPerMinutePerProjectPerModel", options.requests_per_minute),
            "tokens": ("GenerateContentInputTokensPerModelPerMinute", options.tokens_per_minute),
            "day": ("GenerateRequestsPerDayPerProjectPerModel", options.requests_per_day),
        }[quota]
        delay = 3600.0 if quota == "day" else options.retry_delay
        value = 15 if limit is None else limit  # 15: the free tier's, where a fault comes without a quota
        violation = {"quotaId": name, "quotaValue": str(value)}
        details = [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{delay}s"},
        ]
        self._error(429, "RESOURCE_EXHAUSTED", f"You exceeded your current quota, limit: {value}", details)

    def _error(self, code: int, status: str, message: str, details: Sequence[object] = ()) -> None:
        error = {"code": code, "message": message, "status": status, "details": list(details)}
        self._send(code, orjson.dumps({"error": error}))

    def _send(self, code: int, body: bytes, headers: Mapping[str, str] = _JSON) -> None:
        self._head(code, len(body), headers)
        self.wfile.write(body)

    def _head(self, code: int, length: int, headers: Mapping[str, str] = _JSON) -> None:
        self.send_response(code)
        for name, value in {**headers, "content-length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _named(path: str, kind: str) -> str:
    """``files/abc`` out of a longer path."""
    return f"{kind}/{path.rpartition(f'/{kind}/')[2]}"
