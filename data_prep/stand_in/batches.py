"""The stand-in's Files and Batch API: files are uploaded, answered some time later, and downloaded.

As with Gemini, creating a batch twice answers (and bills) it twice, whatever its title. The results of an answered batch have
a line for each request, in no particular order, with a reply or an error; an expired batch has none.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.stand_in import faults as fault_kinds
from data_prep.stand_in import messages
from data_prep.stand_in.state import State

_RUNNING = "BATCH_STATE_RUNNING"
# Results carry codes of gRPC, not of HTTP.
_ERRORS = {
    "status_429": {"code": 8, "message": "Resource has been exhausted"},
    "status_500": {"code": 13, "message": "An internal error has occurred."},
    "status_503": {"code": 14, "message": "The model is overloaded. Please try again later."},
    "unknown_image": {"code": 3, "message": "Unable to process input image."},
}


@dataclass
class Job:
    """A batch."""

    name: str
    title: str
    model: str
    key: str
    upload: str
    created: float
    state: str = _RUNNING
    results: str | None = None

    def operation(self) -> dict[str, object]:
        """The job as the API shows it: a long-running operation."""
        metadata: dict[str, object] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": self.name,
            "displayName": self.title,
            "model": self.model,
            "state": self.state,
            "createTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created)),
        }
        if self.results:
            metadata["output"] = {"responsesFile": self.results}
        return {"name": self.name, "metadata": metadata, "done": self.state != _RUNNING}


class Batches:
    """Files and jobs. Every call comes under the state's lock."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._files: dict[str, bytes] = {}
        self._jobs: dict[str, Job] = {}
        self._created = self._ended = 0  # their numbers choose the faults

    def upload(self, name: str | None, data: bytes) -> str:
        """Take (a chunk of) a file; its name."""
        name = name or f"files/{uuid.uuid4().hex[:12]}"
        self._files[name] = self._files.get(name, b"") + data
        return name

    def create(self, model: str, key: str, body: dict[str, Any]) -> tuple[str, Job | None]:
        """Create a job: (fault or "", job), or what is wrong: (full or no_file, None)."""
        options = self._state.options
        self._created += 1
        fault = fault_kinds.choose(options.batch_faults, options.seed, f"made {self._created}", 1)
        upload = body.get("batch", {}).get("inputConfig", {}).get("fileName")
        if upload not in self._files:
            return "no_file", None
        self._advance()
        running = sum(job.state == _RUNNING for job in self._jobs.values())
        if options.batches_at_once is not None and running >= options.batches_at_once:
            return "full", None
        name = f"batches/{uuid.uuid4().hex[:16]}"
        job = Job(name, str(body["batch"].get("displayName")), model, key, upload, time.time())
        self._jobs[name] = job
        return fault, job

    def list(self, size: int, token: str) -> dict[str, object]:
        """A page of the jobs, the newest first."""
        self._advance()
        jobs, begin = list(self._jobs.values())[::-1], int(token or 0)
        page: dict[str, object] = {"operations": [job.operation() for job in jobs[begin : begin + size]]}
        if begin + size < len(jobs):
            page["nextPageToken"] = str(begin + size)
        return page

    def get(self, name: str) -> dict[str, object] | None:
        """A job as it is now."""
        self._advance()
        return self._jobs[name].operation() if name in self._jobs else None

    def cancel(self, name: str) -> bool:
        """Cancel a job that is under way; whether there is such a job."""
        self._advance()
        job = self._jobs.get(name)
        if job and job.state == _RUNNING:
            job.state = "BATCH_STATE_CANCELLED"
        return job is not None

    def file(self, name: str) -> bytes | None:
        """The contents of a file."""
        return self._files.get(name)

    def _advance(self) -> None:
        for job in self._jobs.values():
            if job.state == _RUNNING and time.time() >= job.created + self._state.options.batch_seconds:
                self._end(job)

    def _end(self, job: Job) -> None:
        """Answer all requests of a job, or none where a fault says so."""
        options = self._state.options
        self._ended += 1
        fault = fault_kinds.choose(options.batch_faults, options.seed, f"over {self._ended}", 1)
        if fault in ("expired", "failed"):
            job.state = f"BATCH_STATE_{fault.upper()}"
            return
        lines = [self._answer(job, line) for line in self._files[job.upload].splitlines()]
        job.results = f"files/{uuid.uuid4().hex[:12]}"
        self._files[job.results] = b"".join(sorted(lines))  # not in the order of the requests
        job.state = "BATCH_STATE_SUCCEEDED"

    def _answer(self, job: Job, line: bytes) -> bytes:
        """A line of the results; nothing where the fault is one that no batch can show."""
        entry = orjson.loads(line)
        shown = messages.gemini_image(entry["request"])
        image = hashlib.sha256(shown).hexdigest() if shown else ""
        answer = self._state.answer(image, messages.gemini_asked(entry["request"]))
        self._state.note(job.created, answer.fault or "ok", job.key, image=image, answer=answer, batch=job.name)
        result: dict[str, object] = {"key": entry["key"]}
        if answer.fault in _ERRORS:
            result["error"] = _ERRORS[answer.fault]
        elif answer.fault in fault_kinds.TRANSPORT:
            return b""
        else:
            result["response"] = messages.gemini_reply(answer.text, answer.finish_reason, job.model, answer.manner)
        return orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)
