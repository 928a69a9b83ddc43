"""The loop that every sharded stage runs.

Validate, generate and evaluate differ only in what they do to an item. Everything else is here: which items belong to a
shard, which of them are done already (whatever shard or attempt did them), recording outcomes so that a kill loses
nothing, retrying what may succeed, stopping on request, counting, and the marker at the end.

The promise: ``items = done + failed + remaining``, at any moment, after any kill.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from data_prep.outcomes import Failed, Ok, Todo, UserError
from jobs.run.layout import ShardStore
from jobs.shards.digest import as_hex, digest, item_hash, items_digest, write_settings
from jobs.shards.journal import JournalWriter, ReadReport, corrupted_files, extents, journal_files, new_attempt
from jobs.shards.marker import ShardMarker
from jobs.shards.outdated import Outdated, outdated
from jobs.shards.progress import ItemT, Progress, ShardSource, load_progress
from jobs.shards.store import frozen_shards, shard_of


@dataclass(frozen=True, slots=True)
class ShardResult:
    """How one attempt at one shard ended."""

    items: int
    done: int
    failed: int
    remaining: int
    stopped: bool


def shard_items(source: ShardSource[ItemT], shard: int, shards: int) -> Iterator[ItemT]:
    """The items of one shard, streamed."""
    return (item for item in source.items() if shard_of(source.group(item), shards) == shard)


def shard_made(source: ShardSource[Any], shard: int, shards: int) -> dict[str, str]:
    """What each item of one shard is made from, by key."""
    return {source.key(item): made for item, made in source.identified(shard_items(source, shard, shards))}


def pending_shards(source: ShardSource[Any], shards: int) -> list[int]:
    """The shards with work left: those without a valid marker of the present items, or whose records were damaged since."""
    stores = {variant: (store, frozen_shards(store)) for variant, store in source.stores().items()}
    # Some records lie in the folders of earlier shards, which the present markers do not vouch for: they are counted.
    moved = any(frozen and frozen.earlier for _, frozen in stores.values())
    made: list[dict[str, str]] = [{} for _ in range(shards)]
    counts, sums = [0] * shards, [0] * shards
    for item, content in source.identified(source.items()):
        shard, key = shard_of(source.group(item), shards), source.key(item)
        counts[shard] += 1
        sums[shard] += item_hash(key, content)
        if moved:
            made[shard][key] = content
    pending = set()
    for variant, (store, frozen) in stores.items():
        now, finished = (shards, digest(source.settings(variant)), source.input_digest()), []
        for shard in range(shards):
            marker = ShardMarker.read(store, shard)
            if (
                not (marker and frozen and marker.made_under == now)
                or (marker.items, marker.items_digest) != (counts[shard], as_hex(sums[shard]))
                or has_retries_left(marker, source)
                or corrupted_files(store.shard(shard), marker.records | marker.outputs)
            ):
                pending.add(shard)
            else:
                finished.append(shard)
        if finished and frozen and frozen.earlier:
            every = {key: content for part in made for key, content in part.items()}
            progress = load_progress(source, variant, every, ReadReport())
            pending.update(shard for shard in finished if not all(map(progress.settled, made[shard])))
    return sorted(pending)


def has_retries_left(marker: ShardMarker, source: ShardSource[Any]) -> bool:
    """Whether items ended under lower limits than the present ones."""
    limits = source.limits
    more_tries = marker.failed > 0 and limits.max_tries > marker.max_tries
    return more_tries or (marker.unsatisfied > 0 and limits.max_replies > marker.max_replies)


def refuse_redo(source: ShardSource[Any], found: Outdated | None) -> None:
    """Stop where items would be paid for again.

    Raises:
        UserError: says how many, why, and what they cost.
    """
    if source.paid and found and found.paid:
        raise UserError(
            f"{found.paid:,} items were paid for (${found.dollars:,.2f}), but what was paid for does not count any more: {found.why}. "
            f"It is kept, and counts again if that is set back. To pay for them again {source.redo_cost(found.paid)}, add --redo."
        )


def run_shard(source: ShardSource[Any], shard: int, shards: int, stopping: Callable[[], bool]) -> ShardResult:
    """Do what is left of one shard, as far as time allows.

    Args:
        source: the stage.
        shard: index, from 0.
        shards: how many there are.
        stopping: becomes true when the task was asked to stop; the todos end then.

    Raises:
        UserError: items would be paid for again without consent.
        OSError: the disk is full or gone.
    """
    return _ShardRun(source, shard, shards, stopping).run()


class _ShardRun(Generic[ItemT]):
    """One attempt at one shard."""

    def __init__(self, source: ShardSource[ItemT], shard: int, shards: int, stopping: Callable[[], bool]) -> None:
        self._source, self._shard, self._shards, self._stopping = source, shard, shards, stopping
        self._started = time.time()
        self._report = ReadReport()
        self._stores: Mapping[str, ShardStore] = source.stores()
        self._input_digest = source.input_digest()
        # What each item is made from is looked up once, before the work on it: if it changes meanwhile, the next launch sees it.
        self._made = shard_made(source, shard, shards)
        self._progress: dict[str, Progress] = {}
        for variant in self._stores:
            self._progress[variant] = load_progress(source, variant, self._made, self._report, shard)
            found = outdated(source, variant, self._progress[variant].outdated())
            if not source.may_redo():
                refuse_redo(source, found)
            if found:
                print(f"done again: {found.why}", flush=True)
        self._fingerprints = {
            variant: write_settings(store, source.settings(variant)) for variant, store in self._stores.items()
        }
        self._corrupted = {variant: self._corrupted_files(store) for variant, store in self._stores.items()}
        attempt = new_attempt()
        self._writers = {
            variant: JournalWriter(store.shard(shard), attempt, self._fingerprints[variant])
            for variant, store in self._stores.items()
        }

    def _corrupted_files(self, store: ShardStore) -> list[Path]:
        marker = ShardMarker.read(store, self._shard)
        return corrupted_files(store.shard(self._shard), marker.records) if marker else []

    def run(self) -> ShardResult:
        """Pass over the items until nothing moves any more."""
        for line in self._report.broken:
            print(f"damaged record skipped, its item is done again: {line}", flush=True)
        for path in (path for paths in self._corrupted.values() for path in paths):
            print(f"changed since the shard was finished, what it lost is done again: {path}", flush=True)
        with ExitStack() as stack:
            for writer in self._writers.values():
                stack.callback(writer.close)
            # Only the keys and digests are kept in memory; the items are streamed again in each pass.
            keys, before = self._made, None
            # A further pass gives items that failed, and may succeed, their next try.
            while not self._stopping():
                left = any(not state.settled(key) for state in self._progress.values() for key in keys)
                moved = [(len(p.done), len(p.failed), p.tries.total(), p.poor.total()) for p in self._progress.values()]
                if not left or moved == before:
                    break
                before = moved
                self._source.process(self._todos())
        results = [self._conclude(variant) for variant in self._stores]
        return max(results, key=lambda result: result.remaining)

    def _todos(self) -> Iterator[Todo[ItemT]]:
        for item in shard_items(self._source, self._shard, self._shards):
            key = self._source.key(item)
            for variant, state in self._progress.items():
                if self._stopping():
                    return
                if key in self._made and not state.settled(
                    key
                ):  # an item that was added since waits for the next launch
                    record = functools.partial(self._record, variant, key)
                    yield Todo(item, record, variant, state.replies.get(key, ()), self._made[key])

    def _record(self, variant: str, key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
        self._writers[variant].append(key, outcome, self._made[key], durable=durable)
        self._progress[variant].note(key, outcome)

    def _conclude(self, variant: str) -> ShardResult:
        """Count, and write the marker where nothing is left."""
        state, store, items = self._progress[variant], self._stores[variant], len(self._made)
        done, failed = len(state.done), Counter(state.failed.values())
        remaining = items - done - failed.total()
        assert remaining >= 0, f"{store.folder}: more outcomes than items"
        if remaining == 0:
            finished = self._source.finish(self._shard, self._made)
            earlier = ShardMarker.read(store, self._shard)
            ShardMarker(
                items=items,
                done=done,
                failed=failed.total(),
                reasons=dict(sorted(failed.items())),
                unsatisfied=len(state.unsatisfied),
                answered=len(state.answered),
                max_tries=self._source.limits.max_tries,
                max_replies=self._source.limits.max_replies,
                fingerprint=self._fingerprints[variant],
                input_digest=self._input_digest,
                items_digest=items_digest(self._made.items()),
                shards=self._shards,
                attempts=len(journal_files(store.shard(self._shard))),
                repeated=state.repeated,
                damaged_lines=len(self._report.broken),
                changed_files=len(self._corrupted[variant]) + (earlier.changed_files if earlier else 0),
                records=extents(journal_files(store.shard(self._shard))),
                outputs=extents(finished.outputs),
                seconds=round(time.time() - self._started, 3),
                finished_at=time.time(),
                spending=finished.spending,
            ).write(store, self._shard)
        return ShardResult(items, done, failed.total(), remaining, self._stopping())
