"""How each task last ended, one small file a task, so that a failed task can be told from a killed one without sacct.

``slurm/ends/validate/00007.json`` of a run::

    {"code": -9, "job": "1234", "at": 1764000000.0}
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class End:
    """How the last attempt of a task ended that could say so itself."""

    code: int  # as in subprocess: negative for a signal
    job: str
    at: float
    out_of_memory: bool = False  # its cgroup's counter of kills for memory went up


class Why(StrEnum):
    """Why a task's work is not complete, as far as can be known."""

    failed = "failed"  # ended by itself, with an error in its log: it would only fail again
    out_of_memory = "out of memory"
    killed = "killed"  # by a signal, or with its node: may go well elsewhere
    interrupted = "interrupted"  # asked to stop, more often than the profile allows or by hand
    unfinished = "unfinished"  # ended well, yet work is left

    @property
    def worth_retrying(self) -> bool:
        """Whether the same task may go well the next time."""
        return self not in (Why.failed, Why.out_of_memory)


def write_end(path: Path, code: int, job: str, *, out_of_memory: bool = False) -> None:
    """Record how an attempt ended; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    part.write_text(json.dumps({"code": code, "job": job, "at": time.time(), "out_of_memory": out_of_memory}))
    part.replace(path)


def read_end(path: Path) -> End | None:
    """How the last attempt ended; None where none could say."""
    try:
        return End(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def why(end: End | None, since: float, states: set[str]) -> Why:
    """Put together what is known of a task whose work is not complete.

    Args:
        end: its last word.
        since: when it was submitted; an older word is about an earlier submission.
        states: what sacct says of the job's steps, empty without sacct.
    """
    if "OUT_OF_MEMORY" in states:
        return Why.out_of_memory
    if end is None or end.at < since:
        return Why.interrupted if states & {"TIMEOUT", "CANCELLED"} else Why.killed
    if end.code < 0:
        return Why.out_of_memory if end.out_of_memory else Why.killed
    if end.code == 75:
        return Why.interrupted
    return Why.unfinished if end.code == 0 else Why.failed


def memory_kills() -> dict[str, int]:
    """Processes of this one's cgroup that the kernel killed for lack of memory, by the file that counts them.

    SLURM's cgroup plugin puts each task into a cgroup of its own; then the reason is known on sites without sacct, too.
    Empty where nothing counts.
    """
    counted = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # cgroup v2
            counter = Path(f"/sys/fs/cgroup{group}/memory.events")
        elif "memory" in controllers.split(","):
            counter = Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
        else:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            counted[str(counter)] = int(dict(row.split() for row in counter.read_text().splitlines())["oom_kill"])
    return counted
