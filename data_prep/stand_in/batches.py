"""The stand-in's Files and Batch interface: files are handed in, answered some time later, and fetched.

As with Gemini, creating a batch twice answers (and bills) it twice, whatever its title; a batch that is answered has a line for
each request, in no order, with a reply or an error; a batch that expired has none.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.stand_in import faults as fault_kinds
from data_prep.stand_in import messages

if TYPE_CHECKING:
    from data_prep.stand_in.server import StandIn

_ERRORS = {
    "status_429": {"code": 8, "message": "Resource has been exhausted"},
    "status_500": {"code": 13, "message": "An internal error has occurred."},
    "status_503": {"code": 14, "message": "The model is overloaded. Please try again later."},
}


@dataclass
class _Job:
    name: str
    title: str
    model: str
    key: str
    upload: str
    created: float
    state: str = "BATCH_STATE_RUNNING"
    results: str | None = None

    def operation(self) -> dict[str, Any]:
        """The job as the server says it."""
        over = self.state != "BATCH_STATE_RUNNING"
        metadata: dict[str, Any] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": self.name,
            "displayName": self.title,
            "model": self.model,
            "state": self.state,
            "createTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created)),
        }
        if self.results:
            metadata["output"] = {"responsesFile": self.results}
        return {"name": self.name, "metadata": metadata, "done": over}


@dataclass
class Batches:
    """Files and jobs. Every call comes under the server's lock.

    Args:
        server: for answers, faults and the log.
        seconds: until a batch is answered.
        at_once: batches under way at most; 429 for more. None: no limit.
    """

    server: StandIn
    seconds: float = 0.0
    at_once: int | None = None
    _files: dict[str, bytes] = field(default_factory=dict)
    _jobs: dict[str, _Job] = field(default_factory=dict)

    def upload(self, name: str | None, data: bytes) -> str:
        """Take (a piece of) a file; its name."""
        name = name or f"files/{uuid.uuid4().hex[:12]}"
        self._files[name] = self._files.get(name, b"") + data
        return name

    def create(self, model: str, key: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Make a job: ("", operation), or what is wrong: full, no_file, failed."""
        upload = body.get("batch", {}).get("inputConfig", {}).get("fileName")
        if upload not in self._files:
            return "no_file", {}
        self._advance()
        running = sum(job.state == "BATCH_STATE_RUNNING" for job in self._jobs.values())
        if self.at_once is not None and running >= self.at_once:
            return "full", {}
        name = f"batches/{uuid.uuid4().hex[:16]}"
        job = _Job(name, str(body["batch"].get("displayName")), model, key, upload, time.time())
        self._jobs[name] = job
        return "", job.operation()

    def list(self, size: int, token: str) -> dict[str, Any]:
        """A page of the jobs, the newest first."""
        self._advance()
        jobs, begin = list(self._jobs.values())[::-1], int(token or 0)
        page: dict[str, Any] = {"operations": [job.operation() for job in jobs[begin : begin + size]]}
        if begin + size < len(jobs):
            page["nextPageToken"] = str(begin + size)
        return page

    def get(self, name: str) -> dict[str, Any] | None:
        """A job as it is now."""
        self._advance()
        return self._jobs[name].operation() if name in self._jobs else None

    def cancel(self, name: str) -> bool:
        """Give a job up that is under way."""
        self._advance()
        job = self._jobs.get(name)
        if job and job.state == "BATCH_STATE_RUNNING":
            job.state = "BATCH_STATE_CANCELLED"
        return job is not None

    def file(self, name: str) -> bytes | None:
        """What a file holds."""
        return self._files.get(name)

    def _advance(self) -> None:
        for job in self._jobs.values():
            if job.state == "BATCH_STATE_RUNNING" and time.time() >= job.created + self.seconds:
                self._finish(job)

    def _finish(self, job: _Job) -> None:
        """Answer all requests of a job, or none, as ordered."""
        server = self.server
        server.batches_over += 1
        fault = fault_kinds.choose(server.batch_faults, server.seed, f"over {server.batches_over}", 1)
        if fault in ("expired", "failed"):
            job.state = f"BATCH_STATE_{fault.upper()}"
            return
        lines = [self._answer(job, line) for line in self._files[job.upload].splitlines()]
        job.results = f"files/{uuid.uuid4().hex[:12]}"
        self._files[job.results] = b"".join(sorted(line for line in lines if line))  # in no order of ours
        job.state = "BATCH_STATE_SUCCEEDED"

    def _answer(self, job: _Job, line: bytes) -> bytes:
        """A line of the results; nothing where the fault is one that no batch can show."""
        server, entry = self.server, orjson.loads(line)
        image = messages.gemini_image(entry["request"])
        picture = hashlib.sha256(image or b"").hexdigest()
        ask = server.next_ask(picture)
        fault = fault_kinds.choose(server.faults, server.seed, picture, ask)
        pairs = server.answers.get(picture)
        result: dict[str, Any] = {"key": entry["key"]}
        if fault in _ERRORS:
            result["error"] = _ERRORS[fault]
        elif fault in fault_kinds.TRANSPORT:
            server.note(job.created, picture, ask, fault, job.key, job.name)
            return b""
        elif pairs is None:
            fault = "unknown_image"
            result["error"] = {"code": 3, "message": "Unable to process input image."}
        else:
            text = None if fault == "safety" else fault_kinds.spoil(fault, pairs)
            finish = "MAX_TOKENS" if fault == "max_tokens" else "STOP"
            result["response"] = messages.gemini_reply(text, finish, job.model)
        server.note(job.created, picture, ask, fault or "ok", job.key, job.name)
        return orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)
