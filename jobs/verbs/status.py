"""How far a run is, from its own files: per step items done, failed and left, shards, rate, money, last errors.

The run's files are the truth. Finished shards are taken from their markers; only what is being worked on is read record by
record, so that a run of a thousand shards is told in seconds.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import last_json_line, read_json
from data_prep.generate.batch_api import under_way
from jobs.config import Config
from jobs.pipeline import make_stage, steps_of
from jobs.run.layout import TINY_LOG, RunDir, Step, ShardStore
from jobs.shards.digest import digest
from jobs.shards.journal import Damage
from jobs.shards.loop import Progress, Work, known_shards, outcome_of, read_marker, store_records
from jobs.stages.base import ShardedStage, SingleStage

RATE_WINDOW_SECONDS = 300.0


@dataclass(slots=True)
class StepStatus:
    """One step of a run. ``items == done + failed + remaining`` wherever items is known."""

    step: str
    state: str  # waiting | partial | done | outdated
    items: int | None = None
    done: int = 0
    failed: int = 0
    remaining: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    shards: int | None = None
    shards_done: int = 0
    per_second: float | None = None  # over the last minutes of work
    seconds_left: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    seconds: float = 0.0  # summed over the tasks that finished
    damaged_lines: int = 0
    changed_files: int = 0  # record files that were damaged after their shard was finished
    counts: dict[str, int] = field(default_factory=dict)  # what a stage that is one job reports of itself
    notes: list[str] = field(default_factory=list)  # what the report says at its top and no other step knows
    last_error: str = ""
    last_log: str = ""
    in_batches: int = 0  # products that wait in batches which a server is answering

    def spent(self) -> str:
        """Money and tokens so far, for people; "" for a stage that costs nothing."""
        tokens = self.input_tokens + self.output_tokens
        if not tokens:
            return ""
        money = f"${self.dollars:,.2f}, " if self.dollars else ""
        return f"{money}{tokens / 1e6:,.2f} M tokens"

    def warnings(self) -> list[str]:
        """What a reader of the results must know of this step, in sentences."""
        said = []
        if self.failed:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
            said.append(f"{self.step}: {self.failed:,} of {self.items or 0:,} items failed ({reasons}).")
        if self.remaining and self.state != "waiting":
            waiting = f", {self.in_batches:,} of them wait in batches at Google" if self.in_batches else ""
            said.append(f"{self.step}: {self.remaining:,} items are not done yet{waiting}.")
        if self.state == "waiting":
            said.append(f"{self.step} was not run.")
        if self.damaged_lines:
            said.append(f"{self.step}: {self.damaged_lines:,} damaged records were found by checksum and done again.")
        if self.changed_files:
            said.append(
                f"{self.step}: {self.changed_files:,} record files were found changed, cut or deleted after they were finished; "
                f"what they had lost was done again."
            )
        capped = {name: count for name, count in self.reasons.items() if name.startswith("over_max")}
        if capped:
            said.append(f"{self.step}: " + ", ".join(f"{n} left out {c:,} listings" for n, c in capped.items()) + ".")
        if self.counts and (dropped := {name: count for name, count in self.reasons.items() if name not in capped}):
            what = ", ".join(f"{name} {count:,}" for name, count in dropped.items())
            said.append(f"{self.step}: {sum(dropped.values()):,} were dropped by its rules ({what}).")
        return said + self.notes


def run_status(run: RunDir, config: Config) -> list[StepStatus]:
    """The state of every step, in order."""
    steps = [step_status(run, config, step) for step in steps_of(config)]
    report = steps[-1]
    if report.state == "done":
        known = {warning for step in steps for warning in step.warnings()}
        page = read_json(run.report / "report.json") or {}
        report.notes = [warning for warning in page.get("warnings", []) if warning not in known]
    return steps


def step_status(run: RunDir, config: Config, step: Step) -> StepStatus:
    """The state of one step."""
    stage = make_stage(step, run, config)
    if isinstance(stage, SingleStage):
        status = _single_status(run, stage)
    else:
        assert isinstance(stage, ShardedStage)
        status = _sharded_status(run, stage)
    if status.state != "done":
        status.last_error, status.last_log = last_error(run, step)
    return status


def _single_status(run: RunDir, stage: SingleStage) -> StepStatus:
    status = StepStatus(str(stage.step), "waiting")
    marker = stage.marker()
    if marker is None:
        if stage.name == "train":
            _training_progress(run, stage, status)
        return status
    status.state = "done"
    status.counts, status.reasons, status.seconds = marker["counts"], marker["reasons"], marker["seconds"]
    return status


def _training_progress(run: RunDir, stage: SingleStage, status: StepStatus) -> None:
    """Steps done and to do, from the last line of the training log; before there is one, those of a tiny base."""
    folder = run.step_folder(stage.step)
    line = last_json_line(folder / "log.jsonl") or last_json_line(folder / TINY_LOG)
    if line and "step" in line and line.get("max_steps"):
        status.state = "partial"
        status.items, status.done = int(line["max_steps"]), int(line["step"])
        status.remaining = status.items - status.done


def expected_items(run: RunDir, stage: ShardedStage) -> int | None:
    """How many items a sharded stage has, from the markers of the stages before it; None before those are done."""
    if stage.name == "validate":
        marker = read_json(run.done_file(Step("prepare")))
        return marker["counts"]["products"] if marker else None
    if stage.name == "generate":
        totals, complete = _marker_totals(run.store("validate"))
        return totals["done"] if complete else None
    marker = read_json(run.done_file(Step("curate")))
    return marker["counts"].get(stage.config.evaluate.split) if marker else None


def _marker_totals(store: ShardStore) -> tuple[Counter[str], bool]:
    """Sums over the markers of a store's shards, and whether all of them are there."""
    known = known_shards(store)
    totals: Counter[str] = Counter()
    if known is None:
        return totals, False
    markers = [read_marker(store, shard) for shard in range(known["shards"])]
    for marker in markers:
        for name in ("items", "done", "failed"):
            totals[name] += (marker or {}).get(name, 0)
    return totals, all(markers)


def _sharded_status(run: RunDir, stage: ShardedStage) -> StepStatus:
    status = StepStatus(str(stage.step), "waiting", items=expected_items(run, stage))
    work = stage.work()
    parts = [store_status(store, work, digest(work.settings[name])) for name, store in work.stores.items()]
    status.shards = parts[0].shards
    # A question is done when every model has answered it; money and time add up.
    status.done, status.failed = min(p.done for p in parts), max(p.failed for p in parts)
    status.shards_done = min(p.shards_done for p in parts)
    for part in parts:
        status.input_tokens += part.input_tokens
        status.output_tokens += part.output_tokens
        status.dollars += part.dollars
        status.seconds = max(status.seconds, part.seconds)
        status.damaged_lines += part.damaged_lines
        status.changed_files += part.changed_files
        for reason, count in part.reasons.items():
            status.reasons[reason] = max(count, status.reasons.get(reason, 0))
    rates = [p.per_second for p in parts if p.per_second]
    status.per_second = min(rates) if rates else None
    if status.items is not None:
        status.remaining = max(0, status.items - status.done - status.failed)
        if status.shards is not None and status.shards_done == status.shards and status.remaining == 0:
            status.state = "done"
        elif status.done or status.failed or status.shards_done:
            status.state = "partial"
        if stage.name == "generate" and stage.config.generate.batch and status.state != "done":
            status.in_batches = under_way(run.batches)
            status.per_second = None  # batches come back when they do
            if status.in_batches:
                status.state = "partial"
        if status.state == "partial" and status.per_second:
            status.seconds_left = status.remaining / status.per_second
    return status


def store_status(store: ShardStore, work: Work[Any], fingerprint: str) -> StepStatus:
    """Counts of one store: finished shards from their markers, the others from their records."""
    status = StepStatus(store.folder.name, "partial")
    known = known_shards(store)
    if known is None:
        return status
    status.shards = known["shards"]
    markers = {shard: read_marker(store, shard) for shard in range(known["shards"])}
    valid = {
        shard: marker
        for shard, marker in markers.items()
        if marker and marker["shards"] == known["shards"] and marker["fingerprint"] == fingerprint
    }
    status.shards_done = len(valid)
    damage, reasons = Damage(), Counter[str]()
    for marker in valid.values():
        status.seconds += marker["seconds"]
    resharded = bool(known["earlier"]) and len(valid) < known["shards"]
    if not resharded:
        for marker in valid.values():
            status.done += marker["done"]
            status.failed += marker["failed"]
            status.input_tokens += marker.get("input_tokens", 0)
            status.output_tokens += marker.get("output_tokens", 0)
            status.dollars += marker.get("dollars", 0.0)
            status.damaged_lines += marker["damaged_lines"]
            status.changed_files += marker.get("changed_files", 0)
            reasons.update(marker["reasons"])
    times: list[float] = []
    # After a change of the number of shards, records lie in any folder: all of them are read.
    for shard in [None] if resharded else [shard for shard in markers if shard not in valid]:
        progress = Progress()
        for record in store_records(store, damage, shard=shard):
            progress.note(record["key"], outcome_of(record), work)
            times.append(record["at"])
            value = record.get("value") or {}
            status.input_tokens += value.get("input_tokens", 0)
            status.output_tokens += value.get("output_tokens", 0)
            status.dollars += value.get("dollars", 0.0)
        status.done += len(progress.done)
        status.failed += len(progress.failed)
        reasons.update(progress.failed.values())
    status.damaged_lines += len(damage.broken)
    status.reasons = dict(sorted(reasons.items()))
    status.per_second = _rate(times)
    return status


def _rate(times: list[float]) -> float | None:
    """Records a second over the last minutes in which there were any."""
    if len(times) < 2:
        return None
    latest = max(times)
    recent = [moment for moment in times if latest - moment <= RATE_WINDOW_SECONDS]
    span = latest - min(recent)
    return len(recent) / span if span > 0 else None


def last_error(run: RunDir, step: Step) -> tuple[str, str]:
    """The newest ``error:`` line in the logs of a step, and its file."""
    folder = run.logs(step)
    if not folder.is_dir():
        return "", ""
    for path in sorted(folder.glob("*.log"), key=lambda p: p.name.partition(".")[2], reverse=True):
        if message := error_in_log(path):
            return message, str(path)
    return "", ""


def error_in_log(path: Path) -> str:
    """What a task's log says last of why it failed; "" where it does not say."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


def launcher_alive(run: RunDir) -> dict[str, Any] | None:
    """The launcher that drives this run on this machine, if it lives. A courtesy, not a lock."""
    known = read_json(run.launcher_file)
    if not known or known["host"] != platform.node() or known["pid"] == os.getpid():
        return None
    return known if process_started(known["pid"]) == known["started"] else None


def process_started(pid: int) -> str | None:
    """The start time of a living process (a number given anew to another process has another one)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def as_dict(run: RunDir, steps: list[StepStatus]) -> dict[str, Any]:
    """The status as JSON values, for ``--json``."""
    return {
        "run": str(run.path),
        "at": time.time(),
        "steps": [{**asdict(step), "warnings": step.warnings()} for step in steps],
    }
