"""``launch.py logs``: which log to read, the newest of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from data_prep.outcomes import UserError
from jobs.config import Config
from jobs.pipeline import make_stage, parse_stages, steps_of
from jobs.run.layout import RunDir, Step
from jobs.run.logs import error_in_log, logs_by_task, task_name
from jobs.run.run import load_run
from jobs.stages.status import DONE


@dataclass(frozen=True, slots=True)
class TaskLog:
    """The newest log of one task."""

    step: str
    task: str  # a shard's number, "task" for a stage that is one job, "gate" for the job after a stage on SLURM
    path: Path
    attempts: int
    error: str  # the last reason for failure in the log; "" where it gives none


def show_logs(run_dir: Path, stage: str | None, failed: bool, console: Console) -> None:
    """Print the newest log of every task.

    Raises:
        UserError: no run, no such stage.
    """
    run, config = load_run(run_dir)
    found = find_logs(run, config, steps_of(config, parse_stages(stage)), failed=failed)
    for log in found:
        error = f"  {escape(log.error)}" if log.error else ""
        console.print(f"{log.step} {log.task}: {escape(str(log.path))}{error}")
    if not found:
        console.print("There is no such log.")


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
        logs = logs_by_task(run, step)
        unfinished = _unfinished(run, config, step, set(logs)) if failed else set()
        for task, paths in logs.items():
            if not failed or task in unfinished or (task == "gate" and unfinished):
                found.append(TaskLog(str(step), task, paths[-1], len(paths), error_in_log(paths[-1])))
    return found


def _unfinished(run: RunDir, config: Config, step: Step, every: set[str]) -> set[str]:
    stage = make_stage(step, run, config)
    if stage.status().state == DONE:  # whether its input is there, or was left behind by a run that was moved
        return set()
    try:
        return {task_name(task) for task in stage.pending()}
    except (UserError, FileNotFoundError):  # its input is gone or was changed: nothing of it counts as complete
        return every
