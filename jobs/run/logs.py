"""The logs of a run's tasks, for local runs and for SLURM alike.

A log is ``logs/validate/00007.20261123T131500.log``, or with the job's number where SLURM ran it
(``00007.20261123T131500.job1234_7.log``): the task, and the time of the attempt.
"""

from __future__ import annotations

import time
from pathlib import Path

from jobs.run.layout import RunDir, Step

TAIL_BYTES = 16_384


def new_log(run: RunDir, step: Step, shard: int | None) -> Path:
    """Where the next attempt at a task writes."""
    return run.logs(step) / f"{task_name(shard)}.{time.strftime('%Y%m%dT%H%M%S')}.log"


def task_name(shard: int | None) -> str:
    """How logs name a task: a shard's number, or ``task`` for a stage that is one job."""
    return "task" if shard is None else f"{shard:05d}"


def logs_by_task(run: RunDir, step: Step) -> dict[str, list[Path]]:
    """The logs of each task of a step, oldest attempt first."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.logs(step).glob("*.log"), key=lambda path: path.name.split(".")[1]):
        found.setdefault(path.name.partition(".")[0], []).append(path)
    return dict(sorted(found.items()))


def last_error(run: RunDir, step: Step) -> tuple[str, str]:
    """The newest ``error:`` line in the logs of a step, and its file."""
    paths = [path for attempts in logs_by_task(run, step).values() for path in attempts]
    for path in sorted(paths, key=lambda path: path.name.partition(".")[2], reverse=True):
        if message := error_in_log(path):
            return message, str(path)
    return "", ""


def error_in_log(path: Path) -> str:
    """The last reason for failure that a task's log gives; "" where it gives none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
