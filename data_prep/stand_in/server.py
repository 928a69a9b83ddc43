"""An HTTP server that answers like Gemini's ``generateContent`` and Batch API (and like an OpenAI-compatible chat endpoint).

It finds the answer by the SHA-256 of the image in the request, so the image's own bytes must have been sent::

    {"image_sha256": "d76f…", "qas": [{"question": "What color are the hands?", "answer": "black", "category": "easy"}, …]}

Every request becomes a line of its log, from which tests prove what was paid for::

    {"at": 1764073423.2, "image": "d76f…", "ask": 1, "outcome": "ok", "key": "0042", "answered": 1764073425.2}
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
import urllib.parse
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from data_prep.outcomes import UserError
from data_prep.stand_in import faults as fault_kinds
from data_prep.stand_in import messages
from data_prep.stand_in.batches import Batches
from data_prep.stand_in.messages import INPUT_TOKENS, OUTPUT_TOKENS

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
        batch_seconds: until a batch is answered.
        batches_at_once: under way at most; 429 for more. None: no limit.
        batch_faults: share of batches that go wrong, by kind of `data_prep.stand_in.faults.BATCH_KINDS`.
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
        batch_seconds: float = 0.0,
        batches_at_once: int | None = None,
        batch_faults: dict[str, float] | None = None,
        log: Path | None = None,
        port: int = 0,
    ) -> None:
        unknown = set(faults or {}) - set(fault_kinds.KINDS) | set(batch_faults or {}) - set(fault_kinds.BATCH_KINDS)
        if unknown:
            raise UserError(
                f"stand-in: unknown faults {sorted(unknown)}. Known: "
                f"{', '.join(fault_kinds.KINDS)}; of batches: {', '.join(fault_kinds.BATCH_KINDS)}."
            )
        self.answers = _read_answers(answers)
        self.latency, self.faults, self.seed, self.retry_delay = latency, faults or {}, seed, retry_delay
        self.requests_per_minute, self.requests_per_day = requests_per_minute, requests_per_day
        self.tokens_per_minute = tokens_per_minute
        self.keys, self.models = keys, models
        self.batch_faults, self.batches_made, self.batches_over = batch_faults or {}, 0, 0
        self.batches = Batches(self, batch_seconds, batches_at_once)
        self.entries: list[dict[str, Any]] = []
        self._asked: Counter[str] = Counter()
        self._recent: deque[float] = deque()
        self._today = 0
        self.lock = threading.RLock()
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

    def note(self, arrived: float, picture: str, ask: int, outcome: str, key: str, batch: str = "") -> None:
        """Write one request into the log: when it came, about what, and how it is about to be answered."""
        entry = {"at": arrived, "image": picture, "ask": ask, "outcome": outcome, "key": key[-4:]}
        if batch:
            entry["batch"] = batch
        entry["answered"] = time.time()
        with self.lock:
            self.entries.append(entry)
            if self._log:
                self._log.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def next_ask(self, picture: str) -> int:
        """How often this image has been asked about, this request included."""
        with self.lock:
            self._asked[picture] += 1
            return self._asked[picture]

    def admit(self) -> str:
        """Count a request against the quota: "", or which quota is used up."""
        now = time.monotonic()
        with self.lock:
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
            key = self.headers.get("x-goog-api-key", "")
            self._answer(messages.gemini_image(request), model, key, messages.gemini_reply)
        elif path.endswith("/chat/completions"):
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            self._answer(messages.openai_image(request), str(request.get("model")), key, messages.openai_reply)
        elif path.endswith(":batchGenerateContent"):
            self._create_batch(path.rpartition("/")[2].partition(":")[0], request)
        elif path.endswith(":cancel"):
            with self.stand_in.lock:
                known = self.stand_in.batches.cancel(_named(path, "batches").removesuffix(":cancel"))
            self._found({} if known else None)
        else:
            self._error(404, "NOT_FOUND", f"no such method: {self.path}")

    def do_GET(self) -> None:
        """A batch, the list of all, or a file of results."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if not self._key_is_good(time.time()):
            return
        with self.stand_in.lock:
            batches = self.stand_in.batches
            if url.path.endswith(":download"):
                data = batches.file(_named(url.path, "files").removesuffix(":download"))
                found = None
            elif url.path.endswith("/batches"):
                data, found = None, batches.list(int(query.get("pageSize", 50)), query.get("pageToken", ""))
            else:
                data, found = None, batches.get(_named(url.path, "batches"))
        if data is not None:
            self._send(200, data, "application/octet-stream")
        else:
            self._found(found)

    def _found(self, body: dict[str, Any] | None) -> None:
        if body is None:
            self._error(404, "NOT_FOUND", f"Requested entity was not found: {self.path}")
        else:
            self._send(200, orjson.dumps(body))

    def _upload(self, body: bytes) -> None:
        """Google's resumable upload: the first request asks for an address, the others bring the pieces to it."""
        if not self._key_is_good(time.time()):
            return
        command = self.headers.get("x-goog-upload-command", "")
        with self.stand_in.lock:
            if command == "start":
                name = self.stand_in.batches.upload(None, b"")
            else:
                name = self.stand_in.batches.upload(_named(self.path, "files"), body)
        self.send_response(200)
        address = f"{self.stand_in.url}/upload/{name}"
        self.send_header("x-goog-upload-url", address)
        self.send_header("x-goog-upload-status", "final" if "finalize" in command else "active")
        reply = orjson.dumps({"file": {"name": name}} if "finalize" in command else {})
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def _create_batch(self, model: str, request: dict[str, Any]) -> None:
        server, arrived = self.stand_in, time.time()
        if not self._key_is_good(arrived):
            return
        key = self.headers.get("x-goog-api-key", "")
        with server.lock:
            server.batches_made += 1
            fault = fault_kinds.choose(server.batch_faults, server.seed, f"made {server.batches_made}", 1)
            wrong, made = server.batches.create(model, key, request)
        if wrong == "full":
            self._too_many("minute")
        elif wrong:
            self._error(400, "INVALID_ARGUMENT", "the batch names no file that was handed in")
        elif fault == "unheard":
            server.note(arrived, "", 0, "batch_unheard", key, made["name"])
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            server.note(arrived, "", 0, "batch_made", key, made["name"])
            self._send(200, orjson.dumps(made))

    def _key_is_good(self, arrived: float) -> bool:
        """Whether the request has a valid key; answers where it has not."""
        server, key = self.stand_in, self.headers.get("x-goog-api-key", "")
        if not key:  # OpenAI's way
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
        if server.keys is None or key in server.keys:
            return True
        server.note(arrived, "", 0, "bad_key", key)
        self._error(
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            _error_info("API_KEY_INVALID"),
        )
        return False

    def _answer(self, image: bytes | None, model: str, key: str, shape: Any) -> None:
        server, arrived = self.stand_in, time.time()
        if not self._key_is_good(arrived):
            return
        if server.models is not None and model not in server.models:
            server.note(arrived, "", 0, "bad_model", key)
            self._error(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta")
            return
        if image is None:
            server.note(arrived, "", 0, "no_image", key)
            self._error(400, "INVALID_ARGUMENT", "the request has no inline image")
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
            server.note(arrived, picture, ask, "unknown_image", key)
            self._error(400, "INVALID_ARGUMENT", f"the stand-in has no answers for the image {picture}")
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


def _named(path: str, kind: str) -> str:
    """``files/abc`` out of a longer path."""
    return f"{kind}/{path.rpartition(f'/{kind}/')[2]}"


def _error_info(reason: str) -> list[dict[str, Any]]:
    return [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}]
