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
from jobs.preflight import full_disk
from jobs.progress_line import duration
from jobs.run.claim import is_held
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run
from jobs.run.usage import StepAccount, used_by
from jobs.stages.status import DONE, PARTIAL, WAITING, StepStatus

WATCH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What SLURM knows of a run."""

    counts: dict[str, dict[str, int]] | None  # jobs by step and state; a gate's under GATE; None: squeue is silent
    stopped: dict[str, str]  # steps at which the chain stopped, and why
    verdicts: dict[str, dict[str, str]]  # by step: verdict, why, advice; see slurm.watch.reconcile
    accounts: dict[str, StepAccount]  # what jobs used, by step, as sacct says now; empty where it does not


def show_status(run_dir: Path, console: Console, *, as_json: bool, watch: bool = False) -> None:
    """Print how far a run is, once or again and again.

    Raises:
        UserError: the folder is not a run directory.
    """
    run, config = load_run(run_dir)
    while True:
        steps = run_status(run, config)
        queue = look_at_queue(run)
        for step in steps:
            if queue and (account := queue.accounts.get(step.step)):
                step.used = used_by(run, Step.parse(step.step), account)
        if as_json:
            print(orjson.dumps(as_dict(run, steps, queue), option=orjson.OPT_INDENT_2).decode(), flush=True)
        else:
            if watch:
                console.clear()
            running = is_held(run)
            table = status_table(run, steps, queue, running=running)
            unlimited = console.options.update(max_width=10_000)
            if console.measure(table, options=unlimited).maximum > console.width:  # a table would be cut
                for line in status_lines(run, steps, queue, running=running):
                    console.print(line)
            else:
                console.print(table)
            for step in steps:
                for line in remarks(step):
                    console.print(line)
            for line in verdict_lines(steps, queue):
                console.print(line)
            if full := full_disk(run.path):
                console.print(f"[red]{escape(full)}[/]")
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def look_at_queue(run: RunDir) -> QueueStatus | None:
    """What SLURM says of the run; None for one that was never submitted."""
    if not run.slurm.is_dir():
        return None
    from jobs.backends import slurm  # only runs on SLURM need it

    counts, verdicts = slurm.look(run)
    return QueueStatus(
        None if counts is None else {k: dict(v) for k, v in counts.items()},
        slurm.stopped_steps(run),
        {name: {key: str(value) for key, value in asdict(one).items()} for name, one in verdicts.items()},
        slurm.accounts(run),
    )


def as_dict(run: RunDir, steps: Sequence[StepStatus], queue: QueueStatus | None) -> dict[str, object]:
    """The status as JSON values, for ``--json``."""
    found: dict[str, object] = {
        "run": str(run.path),
        "at": time.time(),
        "running": is_held(run),
        "steps": [{**asdict(step), "warnings": step.warnings()} for step in steps],
    }
    return found | ({"queue": queue.counts, "stopped": queue.stopped, "verdicts": queue.verdicts} if queue else {})


def status_table(
    run: RunDir, steps: Sequence[StepStatus], queue: QueueStatus | None = None, *, running: bool = False
) -> Table:
    """The status as a table for people.

    Args:
        run: the run.
        steps: how far each is.
        queue: what SLURM says.
        running: whether a command works on the run on this machine.
    """
    current = current_step(steps) if running else None
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
        waiting = _jobs(queue, step)
        rows.append(
            (
                step.step,
                _state(step, queue, running=step is current),
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


def status_lines(
    run: RunDir, steps: Sequence[StepStatus], queue: QueueStatus | None = None, *, running: bool = False
) -> list[str]:
    """The status for a narrow terminal: a line a step, and one below for how far it is; see `status_table`."""
    current = current_step(steps) if running else None
    lines = [escape(str(run.path))]
    for step in steps:
        waiting = _jobs(queue, step)
        lines.append(f"{step.step}: {_state(step, queue, running=step is current)}")
        shards = f"{step.shards_done}/{step.shards} shards" if step.shards else ""
        said = [step.progress(), shards, _in_queue(waiting), escape(step.spent())]
        if (step.state != WAITING or waiting) and any(said):
            lines.append("  " + ", ".join(filter(None, said)))
    return lines


def current_step(steps: Sequence[StepStatus]) -> StepStatus | None:
    """The first step that is not done: the one that a launch on this machine works on."""
    return next((step for step in steps if step.state != DONE), None)


def verdict_lines(steps: Sequence[StepStatus], queue: QueueStatus | None) -> list[str]:
    """What SLURM, the chain and the run's files say together of each step that is not just running or queued."""
    states = {step.step: step.state for step in steps}
    said: dict[str, list[str]] = {}
    for name, one in (queue.verdicts if queue else {}).items():
        if (one["why"] or one["advice"]) and (states.get(name) != DONE or one["verdict"] == "stopped"):
            color = "red" if one["verdict"] in ("stopped", "held", "vanished") else "yellow"
            rest = ". ".join(filter(None, (one["why"], one["advice"])))
            said.setdefault(f"[{color}]{one['verdict']}:[/] {escape(rest)}", []).append(name)
    # Of what holds of several steps, such as a queue that does not answer, one line.
    return [f"[bold]{escape(', '.join(names))}[/] {line}" for line, names in said.items()]


def _jobs(queue: QueueStatus | None, step: StepStatus) -> dict[str, int]:
    """A step's jobs in the queue, by their state."""
    return (queue.counts or {} if queue else {}).get(step.step, {})


def _state(step: StepStatus, queue: QueueStatus | None, *, running: bool) -> str:
    """What the files say of a step; or the queue, the chain or a living launch where those are ahead of them."""
    if step.state == DONE:
        return step.state
    verdict = (queue.verdicts if queue else {}).get(step.step, {}).get("verdict", "complete")
    if running:
        return step.phase or "running"
    if verdict != "complete":
        return verdict
    return "stopped" if step.state == PARTIAL else step.state


def _in_queue(queued: dict[str, int]) -> str:
    """A step's jobs by their state; its gate only while it is what is waited for."""
    tasks = {state: count for state, count in queued.items() if state != "GATE"}
    return ", ".join(f"{count} {state.lower()}" for state, count in (tasks or queued).items())


def remarks(step: StepStatus) -> list[str]:
    """What a person should know about a step beyond its counts, one line each."""
    lines = []
    if step.phase:
        lines.append(f"{step.step}: {step.phase}, {step.progress()}" if step.items else f"{step.step}: {step.phase}")
    if step.counts:
        lines.append(f"{step.step}: " + ", ".join(f"{count:,} {escape(name)}" for name, count in step.counts.items()))
    if step.planned_dollars is not None and step.projected_dollars is not None:
        lines.append(f"{step.step}: planned ${step.planned_dollars:,.2f}, projected ${step.projected_dollars:,.2f}")
    if step.used.proposal and step.state == DONE:
        lines.append(f"{step.step}: next time, in the cluster profile: {escape(step.used.proposal)}")
    lines += [f"  {escape(line)}" for line in (step.notes if step.state == WAITING else step.warnings())]
    if step.last_error:
        lines.append(f"  {step.step} last error: {escape(step.last_error)} ({escape(step.last_log)})")
    return lines


def hours(number: float) -> str:
    """Hours with two decimals, or four where there are few; "" for none."""
    return "" if not number else f"{number:,.2f}" if number >= 0.1 else f"{number:.4f}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
