"""A server that lists models, answers what a test wants, and keeps the requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

MODEL = "gemini-3.5-flash-lite"


class Server(BaseHTTPRequestHandler):
    """Lists models, and answers generateContent with what the test wants."""

    listed: ClassVar[Any] = {"models": [{"name": f"models/{MODEL}"}]}
    status: ClassVar[int] = 200
    body: ClassVar[Any] = {}
    seen: ClassVar[list[tuple[str, dict[str, Any]]]]

    def do_GET(self) -> None:
        self.seen.append((self.path, {}))
        self.reply(200, self.listed)

    def do_POST(self) -> None:
        self.seen.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        self.reply(self.status, self.body)

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serve(**attributes: Any) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    seen: list[tuple[str, dict[str, Any]]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Server,), {"seen": seen, **attributes}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
