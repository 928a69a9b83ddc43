"""``launch.py status``: how far a run is, as a table or as JSON, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.pipeline import run_status
from jobs.run.layout import RunDir
from jobs.run.run import load_run
from jobs.stages.status import DONE, WAITING, StepStatus

WATCH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What SLURM knows of a run."""

    counts: dict[str, dict[str, int]] | None  # jobs by step and state; a gate's under GATE; None: squeue is silent
    stopped: dict[str, str]  # steps at which the chain stopped, and why


def show_status(run_dir: Path, console: Console, *, as_json: bool, watch: bool = False) -> None:
    """Print how far a run is, once or again and again.

    Raises:
        UserError: the folder is not a run directory.
    """
    run, config = load_run(run_dir)
    while True:
        steps = run_status(run, config)
        queue = look_at_queue(run)
        if as_json:
            print(orjson.dumps(as_dict(run, steps, queue), option=orjson.OPT_INDENT_2).decode(), flush=True)
        else:
            if watch:
                console.clear()
            console.print(status_table(run, steps, queue.counts if queue else None))
            for step in steps:
                for line in remarks(step):
                    console.print(line)
            for name, message in (queue.stopped if queue else {}).items():
                console.print(f"[red]{escape(name)} stopped:[/] {escape(message)}")
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def look_at_queue(run: RunDir) -> QueueStatus | None:
    """What SLURM says of the run; None for one that was never submitted."""
    if not run.slurm.is_dir():
        return None
    from jobs.backends import slurm  # only runs on SLURM need it

    counts = slurm.queue_counts(run)
    return QueueStatus(None if counts is None else {k: dict(v) for k, v in counts.items()}, slurm.stopped_steps(run))


def as_dict(run: RunDir, steps: Sequence[StepStatus], queue: QueueStatus | None) -> dict[str, object]:
    """The status as JSON values, for ``--json``."""
    found: dict[str, object] = {
        "run": str(run.path),
        "at": time.time(),
        "steps": [{**asdict(step), "warnings": step.warnings()} for step in steps],
    }
    return found | ({"queue": queue.counts, "stopped": queue.stopped} if queue else {})


def status_table(run: RunDir, steps: Sequence[StepStatus], queue: dict[str, dict[str, int]] | None = None) -> Table:
    """The status as a table for people; ``queue`` is what SLURM says, by step and state."""
    names = (
        "step",
        "state",
        "items",
        "done",
        "failed",
        "left",
        "shards",
        "queue",
        "rate",
        "time left",
        "GPU h",
        "CPU h",
        "memory",
        "cost",
    )
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
                hours(step.used.gpu_hours),
                hours(step.used.cpu_hours),
                f"{step.used.max_rss_bytes / 1e9:.1f} GB" if step.used.max_rss_bytes else "",
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
    if step.state == DONE or not tasks:
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
    if step.planned_dollars is not None and step.projected_dollars is not None:
        lines.append(f"{step.step}: planned ${step.planned_dollars:,.2f}, projected ${step.projected_dollars:,.2f}")
    lines += [f"  {escape(line)}" for line in (step.notes if step.state == WAITING else step.warnings())]
    if step.last_error:
        lines.append(f"  {step.step} last error: {escape(step.last_error)} ({escape(step.last_log)})")
    return lines


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 5.2 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def hours(number: float) -> str:
    """Hours with two decimals, or four where there are few; "" for none."""
    return "" if not number else f"{number:,.2f}" if number >= 0.1 else f"{number:.4f}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
