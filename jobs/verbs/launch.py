"""What ``launch.py`` does for each of its verbs: resolve the request, hand it to a backend, say how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.abo import listings
from data_prep.outcomes import UserError
from jobs.backends import local
from jobs.config import DEFAULT_CONFIG, Config, load_config
from jobs.pipeline import make_stage, parse_stages, steps_of
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run, open_run
from jobs.shards.digest import refuse_other_settings
from jobs.shards.loop import frozen_shards, pending_shards
from jobs.stages.base import ShardedStage, SingleStage
from jobs.verbs.status import StepStatus, as_dict, launcher_alive, run_status

WATCH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """The options of a launch, as typed."""

    config: Path | None
    run_dir: Path | None
    stages: str | None
    shards: int | None
    workers: int | None
    overrides: Sequence[str]
    dry_run: bool
    profile: str | None = None


def launch(request: Request, cluster: str, console: Console) -> int:
    """Run the pipeline; the exit code.

    Raises:
        UserError: wrong usage or configuration.
    """
    stages = parse_stages(request.stages)
    config, run_dir = resolve(request.config, request.run_dir, request.overrides, request.shards)
    if "prepare" in stages:
        listings.find_sources(config.data)  # says what is missing before anything is written
    steps = steps_of(config, stages)
    planned = RunDir(run_dir.resolve())
    if cluster == "slurm":
        from jobs.backends import slurm

        profile = slurm.read_profile(request.profile or slurm.DEFAULT_PROFILE)
        if request.dry_run:
            slurm.show_scripts(planned, config, steps, profile, console)
            return 0
    elif request.dry_run:
        show_plan(planned, config, steps, console)
        return 0
    # Before anything is changed of a run that is under way, or of another configuration's.
    require_alone(planned)
    for step in steps:
        if step.stage in ("validate", "generate"):
            stage = make_stage(step, planned, config)
            assert isinstance(stage, ShardedStage)
            work = stage.work()
            for name, store in work.stores.items():
                refuse_other_settings(store, work.settings[name])
    run, notes = open_run(run_dir, config, sys.argv)
    console.print(f"Run directory: {escape(str(run.path))}", style="bold")
    for note in notes:
        console.print(f"note: {escape(note)}", style="yellow")
    if cluster == "slurm":
        return slurm.submit(run, config, steps, profile, console)
    return local.run_local(run, config, steps, request.workers, console)


def require_alone(run: RunDir) -> None:
    """A run has one launcher or one chain of jobs at a time.

    Raises:
        UserError: another local launch drives it, or jobs of it are in SLURM's queue.
    """
    from jobs.backends import slurm

    if other := launcher_alive(run):
        raise UserError(
            f"{run.path} is being driven by another launch.py (process {other['pid']}). Wait for it, or stop it: kill {other['pid']}"
        )
    if queued := slurm.queue_counts(run):
        listed = ", ".join(f"{step} ({states.total()})" for step, states in queued.items())
        raise UserError(
            f"This run is in SLURM's queue already: {listed}. Wait for it, or cancel it: launch.py cancel RUN_DIR"
        )


def resolve(
    path: Path | None, run_dir: Path | None, overrides: Sequence[str], shards: int | None = None
) -> tuple[Config, Path]:
    """The configuration and the run's folder that the options name.

    Raises:
        UserError: the configuration is wrong.
    """
    path = path or DEFAULT_CONFIG
    changes = list(overrides)
    if shards is not None:
        changes += [f"{stage}.shards={shards}" for stage in ("validate", "generate", "evaluate")]
    return load_config(path, changes), run_dir or Path("runs") / path.stem


def diagnose(
    config_path: Path | None,
    run_dir: Path | None,
    profile: str | None,
    overrides: Sequence[str],
    cluster: str,
    console: Console,
) -> int:
    """Check whether a launch would work; the exit code, 1 where something is wrong."""
    from jobs.backends import slurm
    from jobs.verbs import doctor

    config, folder = resolve(config_path, run_dir, overrides)
    site = slurm.read_profile(profile or slurm.DEFAULT_PROFILE) if cluster == "slurm" else None
    checks = doctor.diagnose(RunDir(folder.resolve()), config, steps_of(config), site)
    return doctor.show(checks, console)


def cancel(run_dir: Path, console: Console) -> int:
    """Cancel a run's jobs in SLURM's queue; the exit code."""
    from jobs.backends import slurm

    return slurm.cancel(load_run(run_dir)[0], console)


def show_logs(run_dir: Path, stage: str | None, failed: bool, console: Console) -> None:
    """Print the newest log of every task.

    Raises:
        UserError: no run, no such stage.
    """
    from jobs.verbs.logs import find_logs

    run, config = load_run(run_dir)
    found = find_logs(run, config, steps_of(config, parse_stages(stage)), failed=failed)
    for log in found:
        error = f"  {escape(log.error)}" if log.error else ""
        console.print(f"{log.step} {log.task}: {escape(str(log.path))}{error}")
    if not found:
        console.print("There is no such log.")


def show_plan(run: RunDir, config: Config, steps: Sequence[Step], console: Console) -> None:
    """Say, per step, what a launch would do."""
    table = Table("step", "tasks", "would", title=f"Dry run: {run.path}", title_justify="left")
    blocked = False
    for step in steps:
        stage = make_stage(step, run, config)
        tasks, would = "1", "run"
        if isinstance(stage, SingleStage):
            if stage.marker() is not None and not blocked and stage.complete():
                tasks, would = "0", "skip: done"
        elif isinstance(stage, ShardedStage):
            tasks = str(stage.shards())
            work = stage.work()
            if not blocked and frozen_shards(next(iter(work.stores.values()))) is not None:
                pending = len(pending_shards(work, stage.shards()))
                tasks, would = str(pending), "run" if pending else "skip: done"
        blocked = blocked or would == "run"
        table.add_row(str(step), tasks, would)
    console.print(table)
    console.print("Nothing was done.")


def show_status(run_dir: Path, console: Console, *, as_json: bool, watch: bool = False) -> None:
    """Print how far a run is, once or again and again.

    Raises:
        UserError: the folder is no run directory.
    """
    run, config = load_run(run_dir)
    while True:
        steps = run_status(run, config)
        queue = _queue(run)
        if as_json:
            found = {**as_dict(run, steps), **queue}
            print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode(), flush=True)
        else:
            if watch:
                console.clear()
            console.print(status_table(run, steps, queue.get("queue")))
            for step in steps:
                for line in remarks(step):
                    console.print(line)
            for name, message in queue.get("stopped", {}).items():
                console.print(f"[red]{escape(name)} stopped:[/] {escape(message)}")
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def _queue(run: RunDir) -> dict[str, Any]:
    """What SLURM says of the run; nothing for a run that never was on SLURM."""
    from jobs.backends import slurm

    return slurm.as_json(run) if slurm.chain_folder(run).chain() is not None else {}


def status_table(run: RunDir, steps: Sequence[StepStatus], queue: dict[str, dict[str, int]] | None = None) -> Table:
    """The status as a table for people; ``queue`` is what SLURM says, by step and state."""
    names = ("step", "state", "items", "done", "failed", "left", "shards", "queue", "rate", "time left", "cost")
    rows = []
    for step in steps:
        items = step.items if step.items is not None else step.counts.get("listings")
        waiting = (queue or {}).get(step.step, {})
        rows.append(
            (
                step.step,
                _state(step, waiting),
                _count(items),
                _count(step.done) if step.items is not None else "",
                _count(step.failed) if step.items is not None else "",
                _count(step.remaining),
                f"{step.shards_done}/{step.shards}" if step.shards else "",
                _in_queue(waiting),
                f"{step.per_second:.1f}/s" if step.per_second else "",
                duration(step.seconds_left) if step.seconds_left is not None else "",
                step.spent(),
            )
        )
    shown = [column for column in range(len(names)) if any(row[column] for row in rows)]
    table = Table(title=f"{run.path}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown:
        table.add_column(names[column], justify="left" if column < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    return table


def _state(step: StepStatus, queued: dict[str, int]) -> str:
    """What the files say of a step, or the queue where that is ahead of them."""
    tasks = {state: count for state, count in queued.items() if state != "GATE"}
    if step.state == "done" or not tasks:
        return step.state
    return "running" if tasks.get("RUNNING") else "queued"


def _in_queue(queued: dict[str, int]) -> str:
    """A step's jobs by their state; its gate only while it is what is waited for."""
    tasks = {state: count for state, count in queued.items() if state != "GATE"}
    return ", ".join(f"{count} {state.lower()}" for state, count in (tasks or queued).items())


def remarks(step: StepStatus) -> list[str]:
    """What a person should know about a step beyond its counts, one line each."""
    lines = []
    if step.counts:
        lines.append(f"{step.step}: " + ", ".join(f"{count:,} {escape(name)}" for name, count in step.counts.items()))
    if step.state != "waiting":
        lines += [f"  {escape(warning)}" for warning in step.warnings()]
    if step.last_error:
        lines.append(f"  {step.step} last error: {escape(step.last_error)} ({escape(step.last_log)})")
    return lines


def write_report(run_dir: Path, console: Console) -> None:
    """Write 7_report from what is there."""
    run, config = load_run(run_dir)
    stage = make_stage(Step("report"), run, config)
    assert isinstance(stage, SingleStage)
    stage.execute_and_mark()
    console.print(f"Report: {escape(str(run.report / 'index.html'))}")


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 5.2 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
