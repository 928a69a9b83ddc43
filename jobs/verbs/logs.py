"""Which log to read: the newest of each task, for local runs and for SLURM alike.

A log is ``logs/validate/00007.20261123T131500.log``, or with the job's number where SLURM ran it
(``00007.20261123T131500.job1234_7.log``): task, time of the attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.outcomes import UserError
from jobs.backends.slurm import pending
from jobs.config import Config
from jobs.pipeline import make_stage
from jobs.run.layout import RunDir, Step
from jobs.verbs.status import error_in_log


@dataclass(frozen=True, slots=True)
class TaskLog:
    """The newest log of one task."""

    step: str
    task: str  # a shard's number, "task" for a stage that is one job, "gate" for the job after a stage on SLURM
    path: Path
    attempts: int
    error: str  # what the log says last of why the task failed; "" where it does not say


def find_logs(run: RunDir, config: Config, steps: Sequence[Step], *, failed: bool = False) -> list[TaskLog]:
    """The newest log of every task.

    Args:
        run: the run.
        config: its configuration.
        steps: which steps to look at.
        failed: only tasks whose work is not complete.
    """
    found = []
    for step in steps:
        by_task: dict[str, list[Path]] = {}
        for path in run.logs(step).glob("*.log"):
            by_task.setdefault(path.name.partition(".")[0], []).append(path)
        unfinished = _unfinished(run, config, step) if failed else set()
        for task, paths in sorted(by_task.items()):
            newest = max(paths, key=lambda path: path.name.split(".")[1])
            if not failed or task in unfinished or (task == "gate" and unfinished):
                found.append(TaskLog(str(step), task, newest, len(paths), error_in_log(newest)))
    return found


def _unfinished(run: RunDir, config: Config, step: Step) -> set[str]:
    try:
        left = pending(make_stage(step, run, config))
    except (
        UserError,
        FileNotFoundError,
    ):  # what it reads is not there or was changed: nothing of it counts as complete
        return {path.name.partition(".")[0] for path in run.logs(step).glob("*.log")}
    return {"task" if shard is None else f"{shard:05d}" for shard in left}
