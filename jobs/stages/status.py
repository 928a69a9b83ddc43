"""How far a step of a run is, from the run's own files.

Finished shards are taken from their markers; only what is being worked on is read record by record, so a run of a
thousand shards is told in seconds.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.reasons import in_words
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.run.logs import last_error
from jobs.shards.digest import digest
from jobs.shards.journal import ReadReport
from jobs.shards.marker import ShardMarker, Spending
from jobs.shards.progress import Progress, ShardSource
from jobs.shards.store import frozen_shards, read_records

RATE_WINDOW_SECONDS = 300.0
WAITING, PARTIAL, DONE = "waiting", "partial", "done"


@dataclass(slots=True)
class StepStatus:
    """One step of a run. ``items == done + failed + remaining`` wherever items is known."""

    step: str
    state: str = WAITING
    unit: str = "items"  # what is counted; "steps" in a training
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
    planned_dollars: float | None = None  # before anything was sent, or after a probe
    projected_dollars: float | None = None  # for all items, at what those so far cost
    answered: int = 0  # items that have a reply; of those that are not done, it was of no use
    seconds: float = 0.0  # summed over the tasks that finished
    damaged_lines: int = 0  # records found damaged by their checksum, and done again
    changed_files: int = 0  # record files that were damaged after their shard was finished
    counts: dict[str, int] = field(default_factory=dict)  # what a stage that is one job reports of itself
    notes: list[str] = field(default_factory=list)  # sentences for the top of the report that no other step knows
    last_error: str = ""
    last_log: str = ""
    in_batches: int = 0  # products in batches that the server has not answered yet

    def spent(self) -> str:
        """Money and tokens so far, for people; "" for a step that costs nothing."""
        tokens = self.input_tokens + self.output_tokens
        if not tokens:
            return ""
        money = f"${self.dollars:,.2f}, " if self.dollars else ""
        return f"{money}{tokens / 1e6:,.2f} M tokens"

    def usable(self) -> str:
        """How many paid replies are of use; "" where all are."""
        return f"{self.answered:,} answered, {self.done:,} usable" if self.answered > self.done else ""

    def all_items_failed(self) -> str:
        """Why the next step would have nothing to work on; "" where it has something."""
        if not self.items or self.failed < self.items:
            return ""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return f"all {self.items:,} items of {self.step} failed ({reasons})"

    def warnings(self) -> list[str]:
        """What a reader of the results must know about this step, in sentences."""
        said = []
        if usable := self.usable():
            said.append(f"{self.step}: {usable}.")
        if self.failed:
            said.append(f"{self.step}: {self.failed:,} of {self.items or 0:,} items failed: {in_words(self.reasons)}.")
        if self.remaining and self.state != WAITING:
            waiting = f", {self.in_batches:,} of them are in batches at Google" if self.in_batches else ""
            said.append(f"{self.step}: {self.remaining:,} {self.unit} are not done yet{waiting}.")
        if self.state == WAITING:
            said.append(f"{self.step} was not run.")
        if self.damaged_lines:
            said.append(f"{self.step}: {self.damaged_lines:,} damaged records were found by checksum and done again.")
        if self.changed_files:
            said.append(
                f"{self.step}: {self.changed_files:,} record files were changed, cut or deleted after they were finished; "
                f"what they had lost was done again."
            )
        capped = {name: count for name, count in self.reasons.items() if name.startswith("over_max")}
        if capped:
            said.append(f"{self.step}: {sum(capped.values()):,} listings were left out: {in_words(capped)}.")
        if self.counts and (dropped := {name: count for name, count in self.reasons.items() if name not in capped}):
            said.append(f"{self.step}: {sum(dropped.values()):,} were dropped by its rules: {in_words(dropped)}.")
        return said + self.notes


@dataclass(slots=True)
class StoreStatus:
    """One store: finished shards from their markers, the others from their records."""

    shards: int | None = None
    shards_done: int = 0
    done: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    per_second: float | None = None
    seconds: float = 0.0
    damaged_lines: int = 0
    changed_files: int = 0
    spending: Spending = field(default_factory=Spending)

    def add(self, marker: ShardMarker) -> None:
        """Count a finished shard."""
        self.done += marker.done
        self.failed += marker.failed
        self.damaged_lines += marker.damaged_lines
        self.changed_files += marker.changed_files
        self.reasons.update(marker.reasons)
        self.spending += marker.spending


def store_status(source: ShardSource[Any], variant: str) -> StoreStatus:
    """Count one store of a stage."""
    store, status = source.stores()[variant], StoreStatus()
    known = frozen_shards(store)
    if known is None:
        return status
    status.shards = known.shards
    fingerprint = digest(source.settings(variant))
    finished = {}
    for shard in range(known.shards):
        marker = ShardMarker.read(store, shard)
        if marker and (marker.shards, marker.fingerprint) == (known.shards, fingerprint):
            finished[shard] = marker
    status.shards_done = len(finished)
    status.seconds = sum(marker.seconds for marker in finished.values())
    if known.earlier and len(finished) < known.shards:
        unfinished: list[int | None] = [
            None
        ]  # the number of shards changed: records may lie in any folder, so read all
    else:
        unfinished = [shard for shard in range(known.shards) if shard not in finished]
        for marker in finished.values():
            status.add(marker)
    times: list[float] = []
    for one in unfinished:
        _count_records(source, store, one, status, times)
    status.per_second = _rate(times)
    return status


def _count_records(
    source: ShardSource[Any], store: ShardStore, shard: int | None, status: StoreStatus, times: list[float]
) -> None:
    report, progress, answered = ReadReport(), Progress(source), set()
    for record in read_records(store, report, shard=shard):
        progress.note(record.key, record.outcome(source.value_type))
        times.append(record.at)
        paid = record.value or {}
        if paid.get("input_tokens"):
            answered.add(record.key)
        status.spending += Spending(paid.get("input_tokens", 0), paid.get("output_tokens", 0), paid.get("dollars", 0.0))
    status.spending += Spending(answered=len(answered))
    status.done += len(progress.done)
    status.failed += len(progress.failed)
    status.reasons.update(progress.failed.values())
    status.damaged_lines += len(report.broken)


def _rate(times: list[float]) -> float | None:
    """Records a second over the last minutes in which there were any."""
    if len(times) < 2:
        return None
    latest = max(times)
    recent = [moment for moment in times if latest - moment <= RATE_WINDOW_SECONDS]
    span = latest - min(recent)
    return len(recent) / span if span > 0 else None


def sharded_status(source: ShardSource[Any], step: Step, items: int | None) -> StepStatus:
    """The status of a sharded step.

    Args:
        source: the stage.
        step: its name.
        items: how many it has; None before that is known.
    """
    parts = [store_status(source, variant) for variant in source.stores()]
    # An item is done when every variant is; money and damage add up.
    status = StepStatus(
        str(step),
        items=items,
        done=min(part.done for part in parts),
        failed=max(part.failed for part in parts),
        shards=parts[0].shards,
        shards_done=min(part.shards_done for part in parts),
        per_second=min((part.per_second for part in parts if part.per_second), default=None),
        seconds=max(part.seconds for part in parts),
        damaged_lines=sum(part.damaged_lines for part in parts),
        changed_files=sum(part.changed_files for part in parts),
        reasons=dict(sorted(functools.reduce(operator.or_, (part.reasons for part in parts)).items())),
    )
    spent = sum((part.spending for part in parts), Spending())
    status.input_tokens, status.output_tokens, status.dollars = spent.input_tokens, spent.output_tokens, spent.dollars
    status.answered = spent.answered
    if items is None:
        return status
    status.remaining = max(0, items - status.done - status.failed)
    if status.shards is not None and status.shards_done == status.shards and status.remaining == 0:
        status.state = DONE
    elif status.done or status.failed or status.answered or status.shards_done:
        status.state = PARTIAL
        if status.per_second:
            status.seconds_left = status.remaining / status.per_second
    return status


def finished_shards(store: ShardStore) -> Sequence[ShardMarker] | None:
    """The markers of a store's shards; None while one is missing."""
    known = frozen_shards(store)
    markers = [ShardMarker.read(store, shard) for shard in range(known.shards)] if known else []
    whole = [marker for marker in markers if marker]
    return whole if known and len(whole) == len(markers) else None


def with_last_error(run: RunDir, step: Step, status: StepStatus) -> StepStatus:
    """The status, with what the logs of an unfinished step say last of why."""
    if status.state != DONE:
        status.last_error, status.last_log = last_error(run, step)
    return status
