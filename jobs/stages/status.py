"""How far a step of a run is, from the run's own files.

Finished shards are taken from their markers; only what is being worked on is read record by record, so a run of a
thousand shards is told in seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.reasons import in_words
from jobs.progress_line import progress_text
from jobs.run.layout import RunDir, Step
from jobs.run.logs import last_error
from jobs.run.usage import Used
from jobs.shards.digest import digest
from jobs.shards.journal import ReadReport, journal_files
from jobs.shards.marker import ShardMarker, Spending
from jobs.shards.outdated import outdated
from jobs.shards.progress import Progress, ShardSource, Superseded, stored_records
from jobs.shards.store import frozen_shards, read_records, shard_folders, shard_of

RATE_WINDOW_SECONDS = 300.0
# OUTDATED: what is there was made from other content or under other settings than it would be now.
WAITING, PARTIAL, DONE, OUTDATED = "waiting", "partial", "done", "outdated"


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
    outdated: str = ""  # why it is OUTDATED
    reasons: dict[str, int] = field(default_factory=dict)
    shards: int | None = None
    shards_done: int = 0
    per_second: float | None = None  # over the last minutes of work
    seconds_left: float | None = None
    phase: str = ""  # of a training that has begun and is not done: loading, training, finishing
    loss: float | None = None
    validation: float | None = None  # the last one: share of exact answers
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
    used: Used = field(default_factory=Used)  # by all attempts of its tasks

    def spent(self) -> str:
        """Money and tokens so far, for people; "" for a step that costs nothing."""
        tokens = self.input_tokens + self.output_tokens
        if not tokens:
            return ""
        money = f"${self.dollars:,.2f}, " if self.dollars else ""
        return f"{money}{tokens / 1e6:,.2f} M tokens"

    def progress(self) -> str:
        """How far it is, for people; "" where that is not known."""
        if not self.items:
            return self.phase
        figures = {name: getattr(self, name) for name in ("loss", "validation", "per_second", "seconds_left")}
        return progress_text(self.done + self.failed, self.items, self.unit, **figures)

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
        if self.state == OUTDATED:
            said.append(f"{self.step} is outdated: {self.outdated}. The next launch does it again.")
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
    answered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    per_second: float | None = None
    seconds: float = 0.0
    damaged_lines: int = 0
    changed_files: int = 0
    outdated: str = ""

    def add(self, marker: ShardMarker) -> None:
        """Count a finished shard."""
        self.done += marker.done
        self.failed += marker.failed
        self.answered += marker.answered
        self.damaged_lines += marker.damaged_lines
        self.changed_files += marker.changed_files
        self.reasons.update(marker.reasons)

    def add_progress(self, progress: Progress, report: ReadReport) -> None:
        """Count what is being worked on."""
        self.done += len(progress.done)
        self.failed += len(progress.failed)
        self.answered += len(progress.answered)
        self.reasons.update(progress.failed.values())
        self.damaged_lines += len(report.broken)


class _Items:
    """The present items of a stage by shard; read once, if at all."""

    def __init__(self, source: ShardSource[Any], shards: int) -> None:
        self._source, self._shards = source, shards

    @functools.cached_property
    def made(self) -> list[dict[str, str | None]]:
        """By shard, what each item is made from; None where looking would mean to look at files beside the run."""
        source, parts = self._source, [dict[str, str | None]() for _ in range(self._shards)]
        for item in source.items():
            made = None if source.looks_at_files else source.made_from(item)
            parts[shard_of(source.group(item), self._shards)][source.key(item)] = made
        return parts


def fresh_markers(source: ShardSource[Any], variant: str) -> dict[int, ShardMarker]:
    """By shard, the markers about the present items and settings, as far as that shows without reading the items."""
    store = source.stores()[variant]
    known = frozen_shards(store)
    markers = {shard: ShardMarker.read(store, shard) for shard in range(known.shards if known else 0)}
    now = (known.shards if known else 0, digest(source.settings(variant)), source.input_digest())
    return {shard: marker for shard, marker in markers.items() if marker and marker.made_under == now}


def is_complete(source: ShardSource[Any]) -> bool:
    """Whether all shards of all variants have a marker that counts."""
    known = [(frozen_shards(store), variant) for variant, store in source.stores().items()]
    return all(frozen is not None and len(fresh_markers(source, v)) == frozen.shards for frozen, v in known)


def store_status(
    source: ShardSource[Any], variant: str, finished: Mapping[int, ShardMarker], items: _Items
) -> StoreStatus:
    """Count one store of a stage; ``finished`` are its `fresh_markers`."""
    store, status = source.stores()[variant], StoreStatus()
    known = frozen_shards(store)
    if known is None:
        return status
    status.shards, status.shards_done = known.shards, len(finished)
    status.seconds = sum(marker.seconds for marker in finished.values())
    unfinished = [shard for shard in range(known.shards) if shard not in finished]
    for marker in finished.values():
        status.add(marker)
    # Where the number of shards changed, an item's records may lie in any folder.
    groups = [unfinished] if known.earlier and unfinished else [[shard] for shard in unfinished]
    times: list[float] = []
    superseded: dict[str, Superseded] = {}
    for shards in groups:
        made = {key: content for shard in shards for key, content in items.made[shard].items()}
        report, progress = ReadReport(), Progress(source, digest(source.settings(variant)), made)
        for record in stored_records(source, variant, report, shards[0]):
            if progress.read(record):
                times.append(record.at)
        status.add_progress(progress, report)
        superseded |= progress.outdated()
    stale = [old.shards == known.shards for shard in unfinished if (old := ShardMarker.read(store, shard))]
    if found := outdated(source, variant, superseded):
        status.outdated = found.why
    elif any(stale):
        status.outdated = "its input or its settings changed"
    status.per_second = _rate(times)
    return status


def spending_of(source: ShardSource[Any]) -> Spending:
    """What all records of a stage cost, in whatever folder and made from whatever: from markers as far as they vouch."""
    total = Spending()
    for store in source.stores().values() if source.paid else ():
        for folder in shard_folders(store):
            shard = int(folder.name)
            marker = ShardMarker.read(store, shard)
            sizes = {path.name: path.stat().st_size for path in journal_files(folder)}
            if marker and sizes == {name: extent.size for name, extent in marker.records.items()}:
                total += marker.spending
            else:
                records = read_records(store, ReadReport(), shard=shard)
                total += sum((spent_on(record.value) for record in records if record.value), Spending())
    return total


def spent_on(reply: Mapping[str, Any]) -> Spending:
    """What one stored reply cost."""
    return Spending(reply.get("input_tokens", 0), reply.get("output_tokens", 0), reply.get("dollars", 0.0))


def _rate(times: list[float]) -> float | None:
    """Records a second over the last minutes in which there were any."""
    if len(times) < 2:
        return None
    latest = max(times)
    recent = [moment for moment in times if latest - moment <= RATE_WINDOW_SECONDS]
    span = latest - min(recent)
    return len(recent) / span if span > 0 else None


def sharded_status(source: ShardSource[Any], step: Step, *, input_is_there: bool) -> StepStatus:
    """The status of a sharded step.

    Args:
        source: the stage.
        step: its name.
        input_is_there: whether the stages before it have come to their end, so that the number of items is known.
    """
    spent = spending_of(source)
    status = StepStatus(
        str(step), input_tokens=spent.input_tokens, output_tokens=spent.output_tokens, dollars=spent.dollars
    )
    stores = source.stores()
    known = frozen_shards(next(iter(stores.values())))
    if not input_is_there:
        if any(
            store.done(shard).is_file() for store in stores.values() for shard in range(known.shards if known else 0)
        ):
            status.state, status.outdated = OUTDATED, "its input changed"
        return status
    items = _Items(source, known.shards if known else 1)
    finished = {variant: fresh_markers(source, variant) for variant in stores}
    parts = [store_status(source, variant, finished[variant], items) for variant in stores]
    whole = next((markers for markers in finished.values() if known and len(markers) == known.shards), None)
    # An item is done when every variant is; money and damage add up.
    status = dataclasses.replace(
        status,
        items=sum(map(len, items.made)) if whole is None else sum(marker.items for marker in whole.values()),
        done=min(part.done for part in parts),
        failed=max(part.failed for part in parts),
        shards=parts[0].shards,
        shards_done=min(part.shards_done for part in parts),
        per_second=min((part.per_second for part in parts if part.per_second), default=None),
        seconds=max(part.seconds for part in parts),
        damaged_lines=sum(part.damaged_lines for part in parts),
        changed_files=sum(part.changed_files for part in parts),
        answered=max(part.answered for part in parts),
        reasons=dict(sorted(functools.reduce(operator.or_, (part.reasons for part in parts)).items())),
    )
    assert status.items is not None
    status.remaining = max(0, status.items - status.done - status.failed)
    if why := list(dict.fromkeys(part.outdated for part in parts if part.outdated)):
        status.state, status.outdated = OUTDATED, "; ".join(why)
    elif status.shards is not None and status.shards_done == status.shards and status.remaining == 0:
        status.state = DONE
    elif status.done or status.failed or status.answered or status.shards_done:
        status.state = PARTIAL
        if status.per_second:
            status.seconds_left = status.remaining / status.per_second
    return status


def with_last_error(run: RunDir, step: Step, status: StepStatus) -> StepStatus:
    """The status, with what the logs of an unfinished step say last of why."""
    if status.state not in (DONE, OUTDATED):
        status.last_error, status.last_log = last_error(run, step)
    return status
