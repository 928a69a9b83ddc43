"""The pipeline on one machine: the same tasks as on a cluster, a bounded number at a time, with progress bars."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_prep.files import read_json
from jobs.backends.pool import FinishedTask, Task, run_tasks, visible_gpus
from jobs.backends.stop import StopFlag
from jobs.config import Config
from jobs.pipeline import headlines, make_stage, task_command
from jobs.preflight import full_disk
from jobs.progress_line import ProgressLine
from jobs.run.layout import RunDir, Step
from jobs.run.logs import error_in_log, new_log
from jobs.run.run import PROJECT
from jobs.stages.base import Stage
from jobs.stages.status import StepStatus
from slurm.process import REQUEUE

KILLED_RETRIES = 2  # a task that something killed is started again; one that failed by itself would only fail again


def run_local(run: RunDir, config: Config, steps: Sequence[Step], workers: int | None, console: Console) -> int:
    """Run the steps one after the other; the exit code.

    Raises:
        UserError: something that the user can fix, found before any work.
    """
    launch = _LocalLaunch(run, config, workers or os.cpu_count() or 1, console, StopFlag().install())
    for step in steps:
        try:
            finished = launch.run_step(step)
        except KeyboardInterrupt:  # a second Ctrl-C: the tasks were killed
            paid = " Requests that were under way may be paid for all the same." if step.stage == "generate" else ""
            console.print(f"Stopped {step} at once: what it had in hand is lost, and done again.{paid}", style="yellow")
            return 130
        if not finished:
            return 130 if launch.stop() else 1
    launch.conclude(steps)
    return 0


@dataclass(frozen=True, slots=True)
class _LocalLaunch:
    """One launch on this machine."""

    run: RunDir
    config: Config
    workers: int
    console: Console
    stop: StopFlag

    def run_step(self, step: Step) -> bool:
        """Bring one step to its end; whether it got there."""
        stage = make_stage(step, self.run, self.config)
        gpus = visible_gpus() if stage.needs_gpu else []
        processes = max(1, len(gpus)) if stage.process_per_gpu else 1
        tasks = self._tasks(stage, processes)
        if not tasks:
            self.console.print(f"[green]✓[/] {step}: done already, skipped")
            return True
        if outdated := stage.outdated():
            self.console.print(f"{step}: {escape(outdated)}: done again", style="yellow", soft_wrap=True)
        stage.before_tasks()
        started = time.monotonic()
        if processes > 1:  # one task, which has all of them
            gpus = [",".join(gpus)]
        for retry in range(1 + KILLED_RETRIES):
            results = self._watch(stage, tasks, gpus)
            failed = [result for result in results if result.returncode != 0]
            killed = [result for result in failed if result.returncode < 0]
            if not failed or self.stop() or len(killed) < len(failed) or retry == KILLED_RETRIES:
                break
            self.console.print(f"  {len(killed)} tasks of {step} were killed; starting them again", style="yellow")
            tasks = self._tasks(stage, processes)
        if self.stop():
            return False
        if failed:
            self._explain(step, failed)
            return False
        status = stage.status()
        self.console.print(f"[green]✓[/] {step}: {_summary(status)} [dim]({time.monotonic() - started:.0f} s)[/]")
        if problem := status.all_items_failed():
            self.console.print(f"error: {problem}. Logs: {self.run.logs(step)}", style="red")
        return not problem

    def _tasks(self, stage: Stage, processes: int) -> list[Task]:
        """What is left to do of a step, as commands."""
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
        launcher = [sys.executable, "-m", "jobs.backends.ranks", str(processes)] if processes > 1 else []
        return [
            Task(
                name=str(stage.step) if shard is None else f"{stage.step}[{shard}]",
                command=[*launcher, *task_command(self.run, stage.step, shard)],
                log=new_log(self.run, stage.step, shard),
                env=environment,
            )
            for shard in stage.pending()
        ]

    def _watch(self, stage: Stage, tasks: list[Task], gpus: Sequence[str]) -> list[FinishedTask]:
        """Run the tasks, drawing what the run's own files say of their progress."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            bar = bars.add_task(str(stage.step), total=None, unit="")
            line = ProgressLine(self.console, str(stage.step))
            next_look = 0.0

            def tick() -> None:
                nonlocal next_look
                if (began := time.monotonic()) < next_look or not (self.console.is_terminal or line.due()):
                    return
                status = stage.status()
                # Reading the records of a large shard takes time: no more than a twentieth of one core's.
                next_look = time.monotonic() + max(1.0, 20 * (time.monotonic() - began))
                spent = status.spent()
                if status.items:
                    unit = status.unit + (f", {spent}" if spent else "")
                    if status.loss is not None:
                        unit += f", loss {status.loss:.3f}"
                    bars.update(bar, total=status.items, completed=status.done + status.failed, unit=unit)
                if not self.console.is_terminal:
                    line.say(status.progress() or "running")

            return run_tasks(
                tasks, workers=self.workers, stop=self.stop, on_tick=tick, gpus=gpus, grace=stage.stop_seconds()
            )

    def _explain(self, step: Step, failed: Sequence[FinishedTask]) -> None:
        """Name each failure once, with its log."""
        said: dict[str, tuple[int, Path]] = {}
        for result in failed:
            log = result.task.log
            reason = error_in_log(log) or "; ".join(
                filter(None, (_how_it_ended(result.returncode), full_disk(log.parent)))
            )
            count, first_log = said.get(reason, (0, log))
            said[reason] = (count + 1, first_log)
        for reason, (count, log) in said.items():
            tasks = "" if count == 1 else f" ({count} tasks)"
            self.console.print(f"error: {step} failed{tasks}: {escape(reason)}\n  log: {escape(str(log))}", style="red")
        self.console.print("What was done is kept; the same command again resumes.")

    def conclude(self, steps: Sequence[Step]) -> None:
        """The last lines: the report's path, and the warnings, which stand at the report's top too."""
        report = self.run.report / "index.html"
        if steps and steps[-1].stage == "report" and report.is_file():
            self.console.print(f"Report: {escape(str(report))}", style="bold")
            page = read_json(self.run.report / "report.json") or {}
            for headline in headlines(page):
                self.console.print(escape(headline), style="bold", soft_wrap=True)
            warnings = page.get("warnings", [])
        else:
            statuses = [make_stage(step, self.run, self.config).status() for step in steps]
            warnings = [warning for status in statuses for warning in status.warnings()]
        for warning in warnings:
            self.console.print(f"note: {escape(warning)}", style="yellow", soft_wrap=True)


def _summary(status: StepStatus) -> str:
    """The result of a finished step, failures included."""
    if status.items is None:
        return ", ".join(f"{count:,} {name}" for name, count in status.counts.items())
    parts = [f"{status.done:,} of {status.items:,} done"]
    if usable := status.usable():
        parts.append(usable)
    if status.failed:
        parts.append(f"{status.failed:,} failed ({', '.join(f'{r} {n:,}' for r, n in status.reasons.items())})")
    if spent := status.spent():
        parts.append(spent)
    return ", ".join(parts)


def _how_it_ended(code: int) -> str:
    if code == -9:
        return "killed (signal 9): often the machine's memory ran out; try fewer --workers"
    if code < 0:
        return f"killed by signal {-code}"
    return f"exit code {code}" + (" (asked to stop)" if code == REQUEUE else "")
