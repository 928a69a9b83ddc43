"""``launch.py logs``: which log to read, the newest of each task, and what SLURM wrote beside it; or what is in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from data_prep.outcomes import UserError
from jobs.config import Config
from jobs.pipeline import make_stage, parse_stages, steps_of
from jobs.run.claim import is_held
from jobs.run.layout import RunDir, Step
from jobs.run.logs import error_in_log, logs_by_task, task_name
from jobs.run.run import load_run
from jobs.stages.status import DONE


@dataclass(frozen=True, slots=True)
class TaskLog:
    """The newest log of one task."""

    step: str
    task: str  # a shard's number, "task" for a stage that is one job, "gate" for the job after a stage on SLURM; or several
    # shards that one job does (00003-00005); "... in SLURM's words" for what SLURM wrote of it
    path: Path
    attempts: int
    error: str  # the last reason for failure in the log; "" where it gives none

    def lines(self) -> list[str]:
        """The whole lines of the log so far; a line that is not finished is not among them."""
        try:
            text = self.path.read_bytes().decode(errors="replace")
        except OSError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()


LOOK_SECONDS = 1.0  # between two looks at the logs that are followed
LIST_SECONDS = 10.0  # between two looks at which logs there are, and whether the run has ended


def show_logs(run_dir: Path, stage: str | None, failed: bool, tail: int | None, console: Console) -> None:
    """Print where the newest log of every task is, and the last error in it; or its last lines.

    Raises:
        UserError: no run, no such stage.
    """
    run, config = load_run(run_dir)
    found = find_logs(run, config, steps_of(config, parse_stages(stage)), failed=failed)
    for log in found:
        error = f"  {escape(log.error)}" if log.error and tail is None else ""
        console.print(f"{log.step} {log.task}: {escape(str(log.path))}{error}", style="bold" if tail else None)
        for line in log.lines()[-tail:] if tail else ():
            console.print(f"  {line}", markup=False)
    if not found:
        console.print("There is no such log.")


def follow_logs(run_dir: Path, stage: str | None, console: Console, tail: int) -> None:
    """Print the last lines of the newest logs, and then new ones as they come, until nothing of the run works or waits.

    Raises:
        UserError: no run, no such stage.
    """
    run, config = load_run(run_dir)
    steps = steps_of(config, parse_stages(stage))
    seen: dict[Path, int] = {}  # lines of each log that were printed
    began = True
    while True:
        over, deadline = not _is_alive(run), time.monotonic() + LIST_SECONDS
        logs = find_logs(run, config, steps)
        while True:
            for log in logs:
                lines = log.lines()
                first = seen.get(log.path, max(0, len(lines) - tail) if began else 0)
                for line in lines[first:]:
                    console.print(f"{log.step} {log.task}| {line}", markup=False)
                seen[log.path] = max(first, len(lines))
            began = False
            if over or time.monotonic() > deadline:
                break
            time.sleep(LOOK_SECONDS)
        if over:
            return


def _is_alive(run: RunDir) -> bool:
    """Whether a command works on the run, or jobs of it may be in the queue."""
    if is_held(run) or not run.slurm.is_dir():
        return is_held(run)
    from jobs.backends import slurm  # only runs on SLURM need it

    return slurm.queue_counts(run) != {}


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
            if not failed or _among(task, unfinished):
                found.append(TaskLog(str(step), task, paths[-1], len(paths), error_in_log(paths[-1])))
        for log in _slurm_logs(run, step):
            own = log.task.partition(" ")[0]
            if (log.error or own not in logs) and (not failed or _among(own, unfinished)):
                found.append(log)
    # Where a script was submitted by hand in the run's folder, SLURM writes there.
    by_hand = sorted(run.path.glob("slurm-*.out"))
    return found + [TaskLog("by hand", path.stem, path, 1, error_in_log(path)) for path in by_hand]


def _among(task: str, unfinished: set[str]) -> bool:
    """Whether a task, or a job that does several, has work left; a gate where any task has."""
    if task in unfinished or task == "gate":
        return bool(unfinished)
    first, dash, last = task.partition("-")
    return bool(dash) and any(first <= name <= last for name in unfinished)


def _slurm_logs(run: RunDir, step: Step) -> list[TaskLog]:
    """What SLURM itself wrote about the jobs of a step."""
    if not run.slurm.is_dir():
        return []
    from jobs.backends import slurm  # only runs on SLURM need it

    return [
        TaskLog(str(step), f"{task} in SLURM's words", path, len(paths), error)
        for task, paths in slurm.outputs(run, step).items()
        for path, error in list(paths.items())[-1:]
    ]


def _unfinished(run: RunDir, config: Config, step: Step, every: set[str]) -> set[str]:
    stage = make_stage(step, run, config)
    if stage.status().state == DONE:  # whether its input is there, or was left behind by a run that was moved
        return set()
    try:
        return {task_name(task) for task in stage.pending()}
    except (UserError, FileNotFoundError):  # its input is gone or was changed: nothing of it counts as complete
        return every
