"""An HTTP server that answers like Gemini's ``generateContent`` (and like an OpenAI-compatible chat endpoint).

It finds the answer by the SHA-256 of the picture in the request, so the picture's own bytes must have been sent::

    {"image_sha256": "d76f…", "qas": [{"question": "What color are the hands?", "answer": "black", "category": "easy"}, …]}

Every request becomes a line of its log, from which tests prove what was paid for::

    {"at": 1764073423.2, "picture": "d76f…", "ask": 1, "outcome": "ok", "key": "0042", "answered": 1764073425.2}
"""

from __future__ import annotations

import base64
import hashlib
import sys
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from data_prep.records import UserError
from data_prep.stand_in import faults as fault_kinds

INPUT_TOKENS, OUTPUT_TOKENS = 900, 150  # about what a real product costs
HANG_SECONDS, DRIP_SECONDS = 600.0, 0.2


class StandIn:
    """The server, on a port of this machine.

    ``with StandIn(answers) as server: ... server.url``

    Args:
        answers: JSONL file, see above.
        latency: seconds before each reply.
        faults: share of requests that go wrong, by kind of `data_prep.stand_in.faults.KINDS`.
        seed: another seed, other requests.
        retry_delay: seconds that a 429 asks to wait.
        requests_per_minute: enforced over any 60 seconds with 429; None: no limit; 0: the model is not for this project.
        tokens_per_minute: enforced likewise; a request counts with all its tokens, in and out, when it arrives.
        requests_per_day: enforced over the server's life, with a daily quota's 429.
        keys: valid API keys; None: any.
        models: known models; None: any.
        log: file for one line a request.

    Raises:
        UserError: the answers cannot be read, or a fault is unknown.
    """

    def __init__(
        self,
        answers: Path,
        *,
        latency: float = 0.0,
        faults: dict[str, float] | None = None,
        seed: int = 0,
        retry_delay: float = 1.0,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        requests_per_day: int | None = None,
        keys: list[str] | None = None,
        models: list[str] | None = None,
        log: Path | None = None,
        port: int = 0,
    ) -> None:
        unknown = set(faults or {}) - set(fault_kinds.KINDS)
        if unknown:
            raise UserError(f"stand-in: unknown faults {sorted(unknown)}. Known: {', '.join(fault_kinds.KINDS)}.")
        self.answers = _read_answers(answers)
        self.latency, self.faults, self.seed, self.retry_delay = latency, faults or {}, seed, retry_delay
        self.requests_per_minute, self.requests_per_day = requests_per_minute, requests_per_day
        self.tokens_per_minute = tokens_per_minute
        self.keys, self.models = keys, models
        self.entries: list[dict[str, Any]] = []
        self._asked: Counter[str] = Counter()
        self._recent: deque[float] = deque()
        self._today = 0
        self._lock = threading.Lock()
        self._log = log.open("ab", buffering=0) if log else None
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._log:
            self._log.close()

    def serve_forever(self) -> None:
        """Serve until interrupted."""
        self._server.serve_forever()

    def note(self, arrived: float, picture: str, ask: int, outcome: str, key: str) -> None:
        """Write one request into the log: when it came, about what, and how it is about to be answered."""
        entry = {"at": arrived, "picture": picture, "ask": ask, "outcome": outcome, "key": key[-4:]}
        entry["answered"] = time.time()
        with self._lock:
            self.entries.append(entry)
            if self._log:
                self._log.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def next_ask(self, picture: str) -> int:
        """How often this picture has been asked about, this request included."""
        with self._lock:
            self._asked[picture] += 1
            return self._asked[picture]

    def admit(self) -> str:
        """Count a request against the quota: "", or which quota is used up."""
        now = time.monotonic()
        with self._lock:
            while self._recent and now - self._recent[0] >= 60:
                self._recent.popleft()
            if self.requests_per_day is not None and self._today >= self.requests_per_day:
                return "day"
            if self.requests_per_minute is not None and len(self._recent) >= self.requests_per_minute:
                return "minute"
            tokens = (len(self._recent) + 1) * (INPUT_TOKENS + OUTPUT_TOKENS)
            if self.tokens_per_minute is not None and tokens > self.tokens_per_minute:
                return "tokens"
            self._recent.append(now)
            self._today += 1
            return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error of the server's; anything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _read_answers(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        with path.open("rb") as lines:
            rows = [orjson.loads(line) for line in lines]
        return {row["image_sha256"]: row["qas"] for row in rows}
    except OSError as error:
        raise UserError(f"stand-in: cannot read its answers {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"stand-in: {path} must have lines with image_sha256 and qas ({error}).") from error


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal: the log has it all."""

    def do_POST(self) -> None:
        """Answer one request, well or as ordered."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            self._error(400, "INVALID_ARGUMENT", "the body is not JSON")
            return
        path = self.path.partition("?")[0]
        if path.endswith(":generateContent"):
            model = path.rpartition("/")[2].removesuffix(":generateContent")
            key = self.headers.get("x-goog-api-key", "")
            self._answer(_gemini_picture(request), model, key, _gemini_reply)
        elif path.endswith("/chat/completions"):
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            self._answer(_openai_picture(request), str(request.get("model")), key, _openai_reply)
        else:
            self._error(404, "NOT_FOUND", f"no such method: {self.path}")

    def _answer(self, image: bytes | None, model: str, key: str, shape: Any) -> None:
        server, arrived = self.stand_in, time.time()
        if server.keys is not None and key not in server.keys:
            server.note(arrived, "", 0, "bad_key", key)
            self._error(
                400,
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.",
                _error_info("API_KEY_INVALID"),
            )
            return
        if server.models is not None and model not in server.models:
            server.note(arrived, "", 0, "bad_model", key)
            self._error(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta")
            return
        if image is None:
            server.note(arrived, "", 0, "no_picture", key)
            self._error(400, "INVALID_ARGUMENT", "the request has no inline picture")
            return
        picture = hashlib.sha256(image).hexdigest()
        if used_up := server.admit():
            server.note(arrived, picture, 0, f"quota_{used_up}", key)
            self._too_many(used_up)
            return
        ask = server.next_ask(picture)
        fault = fault_kinds.choose(server.faults, server.seed, picture, ask)
        time.sleep(server.latency)
        if fault in fault_kinds.TRANSPORT:
            server.note(arrived, picture, ask, fault, key)
            self._fail(fault)
            return
        pairs = server.answers.get(picture)
        if pairs is None:
            server.note(arrived, picture, ask, "unknown_picture", key)
            self._error(400, "INVALID_ARGUMENT", f"the stand-in has no answers for the picture {picture}")
            return
        text = None if fault == "safety" else fault_kinds.spoil(fault, pairs)
        finish = "MAX_TOKENS" if fault == "max_tokens" else "STOP"
        server.note(arrived, picture, ask, fault or "ok", key)
        self._send(200, orjson.dumps(shape(text, finish, model)))

    def _fail(self, fault: str) -> None:
        if fault == "status_429":
            self._too_many("minute")
        elif fault == "status_500":
            self._error(500, "INTERNAL", "An internal error has occurred.")
        elif fault == "status_503":
            self._error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
        elif fault == "html":
            self._send(200, b"<html><body>Sign in to the network</body></html>", "text/html")
        elif fault == "hang":
            time.sleep(HANG_SECONDS)
            self.close_connection = True
        elif fault == "break_off":
            self._head(200, 1000)
            self.wfile.write(b'{"candidates": [')
            self.close_connection = True
        elif fault == "drip":
            self._head(200, 1000)
            for _ in range(1000):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(DRIP_SECONDS)

    def _too_many(self, which: str) -> None:
        server = self.stand_in
        name, limit = {
            "minute": ("GenerateRequestsPerMinutePerProjectPerModel", server.requests_per_minute),
            "tokens": ("GenerateContentInputTokensPerModelPerMinute", server.tokens_per_minute),
            "day": ("GenerateRequestsPerDayPerProjectPerModel", server.requests_per_day),
        }[which]
        delay = 3600.0 if which == "day" else server.retry_delay
        value = 15 if limit is None else limit
        violation = {"quotaId": name, "quotaValue": str(value)}
        details: list[dict[str, Any]] = [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{delay}s"},
        ]
        self._error(429, "RESOURCE_EXHAUSTED", f"You exceeded your current quota, limit: {value}", details)

    def _error(self, code: int, status: str, message: str, details: list[dict[str, Any]] | None = None) -> None:
        error = {"code": code, "message": message, "status": status, "details": details or []}
        self._send(code, orjson.dumps({"error": error}))

    def _send(self, code: int, body: bytes, kind: str = "application/json") -> None:
        self._head(code, len(body), kind)
        self.wfile.write(body)

    def _head(self, code: int, length: int, kind: str = "application/json") -> None:
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(length))
        self.end_headers()


def _error_info(reason: str) -> list[dict[str, Any]]:
    return [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}]


def _gemini_picture(request: dict[str, Any]) -> bytes | None:
    for content in request.get("contents", []):
        for part in content.get("parts", []):
            inline = part.get("inlineData") or part.get("inline_data")
            if inline:
                return base64.b64decode(inline["data"].replace("-", "+").replace("_", "/"))
    return None


def _openai_picture(request: dict[str, Any]) -> bytes | None:
    for message in request.get("messages", []):
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part.get("type") == "image_url":
                return base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
    return None


def _gemini_reply(text: str | None, finish: str, model: str) -> dict[str, Any]:
    usage = {"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS if text else 0}
    usage["totalTokenCount"] = sum(usage.values())
    if text is None:
        return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": model}
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish, "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}


def _openai_reply(text: str | None, finish: str, model: str) -> dict[str, Any]:
    reason = "content_filter" if text is None else {"STOP": "stop", "MAX_TOKENS": "length"}[finish]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }
    return {"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
