"""What ``launch.py`` does for each of its verbs: resolve the request, hand it to a backend, say how it ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep import abo
from data_prep.records import UserError
from jobs import local
from jobs.config import DEFAULT_CONFIG, Config, load_config
from jobs.loop import frozen_shards, pending_shards
from jobs.pipeline import load_run, make_stage, open_run, parse_stages, steps_of
from jobs.rundir import RunDir, Step
from jobs.stages.base import ShardedStage, SingleStage
from jobs.status import StepStatus, as_dict, run_status


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


def launch(request: Request, cluster: str, console: Console) -> int:
    """Run the pipeline; the exit code.

    Raises:
        UserError: wrong usage or configuration.
    """
    stages = parse_stages(request.stages)
    path = request.config or DEFAULT_CONFIG
    overrides = list(request.overrides)
    if request.shards is not None:
        overrides += [f"{stage}.shards={request.shards}" for stage in ("validate", "generate", "evaluate")]
    config = load_config(path, overrides)
    run_dir = request.run_dir or Path("runs") / path.stem
    if "prepare" in stages:
        abo.find_sources(config.data)  # says what is missing before anything is written
    steps = steps_of(config, stages)
    if request.dry_run:
        show_plan(RunDir(run_dir.resolve()), config, steps, console)
        return 0
    if cluster == "slurm":
        raise UserError("--cluster slurm is not there yet; --cluster local runs the same tasks on this machine.")
    run, notes = open_run(run_dir, config, sys.argv)
    console.print(f"Run directory: {escape(str(run.path))}", style="bold")
    for note in notes:
        console.print(f"note: {escape(note)}", style="yellow")
    return local.run_local(run, config, steps, request.workers, console)


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


def show_status(run_dir: Path, console: Console, *, as_json: bool) -> None:
    """Print how far a run is.

    Raises:
        UserError: the folder is no run directory.
    """
    run, config = load_run(run_dir)
    steps = run_status(run, config)
    if as_json:
        print(orjson.dumps(as_dict(run, steps), option=orjson.OPT_INDENT_2).decode())
        return
    console.print(status_table(run, steps))
    for step in steps:
        for line in remarks(step):
            console.print(line)


def status_table(run: RunDir, steps: Sequence[StepStatus]) -> Table:
    """The status as a table for people."""
    table = Table(title=f"{run.path}", title_justify="left")
    for name in ("step", "state", "items", "done", "failed", "left", "shards", "rate", "time left", "cost"):
        table.add_column(name, justify="left" if name in ("step", "state") else "right")
    for step in steps:
        items = step.items if step.items is not None else step.counts.get("listings")
        table.add_row(
            step.step,
            step.state,
            _count(items),
            _count(step.done) if step.items is not None else "",
            _count(step.failed) if step.items is not None else "",
            _count(step.remaining),
            f"{step.shards_done}/{step.shards}" if step.shards else "",
            f"{step.per_second:.1f}/s" if step.per_second else "",
            duration(step.seconds_left) if step.seconds_left is not None else "",
            f"${step.dollars:.2f}" if step.dollars else "",
        )
    return table


def remarks(step: StepStatus) -> list[str]:
    """What a person should know about a step beyond its counts, one line each."""
    lines = []
    if step.counts:
        lines.append(f"{step.step}: " + ", ".join(f"{count:,} {escape(name)}" for name, count in step.counts.items()))
    if step.reasons:
        lines.append(f"  {step.step} dropped: " + ", ".join(f"{escape(r)} {n:,}" for r, n in step.reasons.items()))
    if step.damaged_lines:
        lines.append(
            f"  {step.step}: {step.damaged_lines} damaged records were found by their checksums and done again"
        )
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
