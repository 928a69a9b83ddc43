"""An HTTP server that answers like Gemini's ``generateContent`` and Batch API (and like an OpenAI-compatible chat endpoint).

It finds the answer by the SHA-256 of the image in the request, so the image's own bytes must have been sent::

    {"image_sha256": "d76f…", "qas": [{"question": "What color are the hands?", "answer": "black", "category": "easy"}, …]}

Every request becomes a line of its log, from which tests prove what was paid for::

    {"at": 1764073423.2, "image": "d76f…", "ask": 1, "outcome": "ok", "key": "0042", "answered": 1764073425.2}
"""

from __future__ import annotations

import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.stand_in.batches import Batches
from data_prep.stand_in.handler import Handler
from data_prep.stand_in.state import StandInOptions, State


class StandIn:
    """The server, on a port of this machine.

    ``with StandIn(answers) as server: ... server.url``

    Args:
        answers: JSONL file, see above.
        options: how it behaves.
        log: file for one line a request.
        port: 0: any free one.

    Raises:
        UserError: the answers cannot be read.
    """

    def __init__(
        self, answers: Path, options: StandInOptions | None = None, *, log: Path | None = None, port: int = 0
    ) -> None:
        self._state = State(answers, options or StandInOptions(), log)
        self.entries = self._state.entries  # the log, as it grows
        self.batches = Batches(self._state)
        handler = type("Handler", (Handler,), {"state": self._state, "batches": self.batches})
        self._server = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIn:
        # Looks 20 times a second whether it should shut down: tests start and end many of these.
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._state.close()

    def serve_forever(self) -> None:
        """Serve until interrupted."""
        self._server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # connections that wait: clients open dozens at once, and the default is 5

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the client hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
