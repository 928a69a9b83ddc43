"""The pipeline on one machine: the same tasks as on a cluster, a bounded number at a time, with progress bars."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from data_prep.files import read_json, write_json
from jobs.backends.pool import Task, TaskResult, run_tasks
from jobs.backends.stop import REQUEUE, StopFlag
from jobs.config import Config
from jobs.pipeline import make_stage, task_command
from jobs.run.layout import RunDir, Step
from jobs.run.run import PROJECT
from jobs.shards.loop import freeze_shards, pending_shards
from jobs.stages.base import ShardedStage, SingleStage, Stage
from jobs.verbs.status import error_in_log, process_started, step_status

KILLED_RETRIES = 2  # a task that something killed is started again; one that failed by itself would only fail again
GPU_STAGES = ("train", "evaluate")


def run_local(run: RunDir, config: Config, steps: Sequence[Step], workers: int | None, console: Console) -> int:
    """Run the steps one after the other; the exit code.

    Raises:
        UserError: something that the user can mend, found before any work.
    """
    workers = workers or os.cpu_count() or 1
    stop = StopFlag().install()
    with _announced(run):
        for step in steps:
            if not _run_step(run, config, step, workers, console, stop):
                if stop():
                    console.print(
                        "Interrupted. What is done is written; the same command again resumes.", style="yellow"
                    )
                    return 130
                return 1
    _conclude(run, config, steps, console)
    return 0


@contextmanager
def _announced(run: RunDir) -> Iterator[None]:
    """Leave a note of who drives the run: a second launch by mistake looks for it (`jobs.verbs.launch.require_alone`)."""
    write_json(
        run.launcher_file, {"host": platform.node(), "pid": os.getpid(), "started": process_started(os.getpid())}
    )
    try:
        yield
    finally:
        run.launcher_file.unlink(missing_ok=True)


def _run_step(run: RunDir, config: Config, step: Step, workers: int, console: Console, stop: StopFlag) -> bool:
    """Bring one step to its end; whether it is there."""
    stage = make_stage(step, run, config)
    gpus = visible_gpus() if step.stage in GPU_STAGES else []
    together = len(gpus) if step.stage == "train" and len(gpus) > 1 else 1
    tasks = _tasks(run, stage, together)
    if not tasks:
        console.print(f"[green]✓[/] {step}: done already, skipped")
        return True
    started = time.monotonic()
    if together > 1:  # one task, which has all of them
        gpus = [",".join(gpus)]
    for retry in range(1 + KILLED_RETRIES):
        results = _watch(run, config, stage, tasks, workers, gpus, console, stop)
        failed = [result for result in results if result.returncode != 0]
        killed = [result for result in failed if result.returncode < 0]
        if not failed or stop() or len(killed) < len(failed) or retry == KILLED_RETRIES:
            break
        console.print(f"  {len(killed)} tasks of {step} were killed; starting them again", style="yellow")
        tasks = _tasks(run, stage, together)
    if stop():
        return False
    if failed:
        _explain(step, failed, console)
        return False
    console.print(f"[green]✓[/] {step}: {_summary(run, config, step)} [dim]({time.monotonic() - started:.0f} s)[/]")
    return not _nothing_came_of_it(run, config, step, console)


def _tasks(run: RunDir, stage: Stage, processes: int) -> list[Task]:
    """What is left to do of a step, as commands; a stage that is one job runs in ``processes`` of them."""
    if isinstance(stage, SingleStage):
        return [] if stage.complete() else [_task(run, stage.step, None, processes)]
    assert isinstance(stage, ShardedStage)
    work, shards = stage.work(), stage.shards()
    pending = pending_shards(work, shards)
    if pending:
        for store in work.stores.values():
            freeze_shards(store, shards)
    return [_task(run, stage.step, shard) for shard in pending]


def _task(run: RunDir, step: Step, shard: int | None, processes: int = 1) -> Task:
    stamp = time.strftime("%Y%m%dT%H%M%S")
    name = "task" if shard is None else f"{shard:05d}"
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
    command = task_command(run, step, shard)
    return Task(
        name=str(step) if shard is None else f"{step}[{shard}]",
        command=[sys.executable, "-m", "jobs.backends.ranks", str(processes), *command] if processes > 1 else command,
        log=run.logs(step) / f"{name}.{stamp}.log",
        env=environment,
    )


def _watch(
    run: RunDir,
    config: Config,
    stage: Stage,
    tasks: list[Task],
    workers: int,
    gpus: Sequence[str],
    console: Console,
    stop: Callable[[], bool],
) -> list[TaskResult]:
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
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(str(stage.step), total=None, unit="")
        looked = 0.0

        def tick() -> None:
            nonlocal looked
            if time.monotonic() - looked < 1.0:
                return
            began = time.monotonic()
            status = step_status(run, config, stage.step)
            # Reading the records of a large shard takes time: no more than a twentieth of a core's.
            looked = time.monotonic() + 20 * (time.monotonic() - began)
            unit = "steps" if stage.name == "train" else "items"
            if spent := status.spent():
                unit += f", {spent}"
            if status.items:
                bars.update(bar, total=status.items, completed=status.done + status.failed, unit=unit)

        # A request that was sent is paid: its reply is waited for.
        grace = config.generate.timeout + 15 if stage.name == "generate" else 30
        return run_tasks(tasks, workers=workers, stop=stop, on_tick=tick, gpus=gpus, grace=grace)


def _summary(run: RunDir, config: Config, step: Step) -> str:
    """What a finished step has to show, failures included."""
    status = step_status(run, config, step)
    if status.items is None:
        parts = [f"{count:,} {name}" for name, count in status.counts.items()]
    else:
        parts = [f"{status.done:,} of {status.items:,} done"]
        if status.failed:
            parts.append(f"{status.failed:,} failed ({', '.join(f'{r} {n:,}' for r, n in status.reasons.items())})")
        if spent := status.spent():
            parts.append(spent)
    return ", ".join(parts)


def _nothing_came_of_it(run: RunDir, config: Config, step: Step, console: Console) -> bool:
    """Whether every single item of a step failed: the next stage would have nothing to work on."""
    status = step_status(run, config, step)
    if not status.items or status.done:
        return False
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in status.reasons.items())
    console.print(f"error: all {status.items:,} items of {step} failed: {reasons}. Logs: {run.logs(step)}", style="red")
    return True


def _explain(step: Step, failed: Sequence[TaskResult], console: Console) -> None:
    """Name each failure once, with its log."""
    said: dict[str, tuple[int, Path]] = {}
    for result in failed:
        reason = error_in_log(result.task.log) or _death(result.returncode) + _full_disk(result.task.log.parent)
        count, log = said.get(reason, (0, result.task.log))
        said[reason] = (count + 1, log)
    for reason, (count, log) in said.items():
        tasks = "" if count == 1 else f" ({count} tasks)"
        console.print(f"error: {step} failed{tasks}: {escape(reason)}\n  log: {escape(str(log))}", style="red")
    console.print("What was done is kept; the same command again resumes.")


def _death(code: int) -> str:
    if code == -9:
        return "killed (signal 9): often the machine's memory ran out; try fewer --workers"
    return (
        f"killed by signal {-code}"
        if code < 0
        else f"exit code {code}" + (" (asked to stop)" if code == REQUEUE else "")
    )


def _full_disk(folder: Path) -> str:
    """What a task could not write into its log, because the disk that holds the log is full."""
    free = shutil.disk_usage(folder).free
    return f"; No space left on device: {free // 1024:,} KB are free at {folder}" if free < 1 << 20 else ""


def _conclude(run: RunDir, config: Config, steps: Sequence[Step], console: Console) -> None:
    """The last lines: where to look, and what was not as it should be, which the report says at its top too."""
    report = run.report / "index.html"
    if steps and steps[-1].stage == "report" and report.is_file():
        console.print(f"Report: {escape(str(report))}", style="bold")
        warnings = (read_json(run.report / "report.json") or {}).get("warnings", [])
    else:
        warnings = [warning for step in steps for warning in step_status(run, config, step).warnings()]
    for warning in warnings:
        console.print(f"note: {escape(warning)}", style="yellow", soft_wrap=True)


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them, found without loading torch; empty where there is none."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
