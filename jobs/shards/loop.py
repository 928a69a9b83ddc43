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

from data_prep.files import read_json
from data_prep.outcomes import Failed, Ok, Todo
from jobs.run.layout import ShardStore
from jobs.shards.digest import differences, digest, freeze_settings, keys_digest
from jobs.shards.journal import JournalWriter, ReadReport, corrupted_files, extents, journal_files, new_attempt
from jobs.shards.marker import ShardMarker
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


def pending_shards(source: ShardSource[Any], shards: int) -> list[int]:
    """The shards with work left: those without a valid marker, or whose records were damaged since.

    Raises:
        UserError: a store holds records made under other settings.
    """
    keys: list[list[str]] = [[] for _ in range(shards)]
    for item in source.items():
        keys[shard_of(source.group(item), shards)].append(source.key(item))
    expected = [(len(part), keys_digest(part)) for part in keys]
    pending = set()
    for variant, store in source.stores().items():
        settings = source.settings(variant)
        known = read_json(store.settings)
        if known is not None and differences(known, settings):
            freeze_settings(store, settings)  # raises and names the setting, if there are records
        fingerprint, frozen, finished = digest(settings), frozen_shards(store), []
        for shard in range(shards):
            marker = ShardMarker.read(store, shard)
            same = marker and (marker.items, marker.keys_digest) == expected[shard] and marker.shards == shards
            if (
                not (marker and same and frozen and marker.fingerprint == fingerprint)
                or has_retries_left(marker, source)
                or corrupted_files(store.shard(shard), marker.records)
            ):
                pending.add(shard)
            else:
                finished.append(shard)
        if finished and frozen and frozen.earlier:
            # Some records lie in the folders of earlier shards, which the present markers do not vouch for: count them.
            progress = load_progress(source, variant, fingerprint, ReadReport())
            pending.update(shard for shard in finished if not all(map(progress.settled, keys[shard])))
    return sorted(pending)


def has_retries_left(marker: ShardMarker, source: ShardSource[Any]) -> bool:
    """Whether items failed under lower limits than the present ones."""
    limits = source.limits
    raised = limits.max_tries > marker.max_tries or limits.max_replies > marker.max_replies
    return marker.failed > 0 and raised


def run_shard(source: ShardSource[Any], shard: int, shards: int, stopping: Callable[[], bool]) -> ShardResult:
    """Do what is left of one shard, as far as time allows.

    Args:
        source: the stage.
        shard: index, from 0.
        shards: how many there are.
        stopping: becomes true when the task was asked to stop; the todos end then.

    Raises:
        UserError: the records on disk were made under other settings.
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
        self._fingerprints = {
            variant: freeze_settings(store, source.settings(variant)) for variant, store in self._stores.items()
        }
        self._progress: dict[str, Progress] = {
            variant: load_progress(source, variant, fingerprint, self._report, shard)
            for variant, fingerprint in self._fingerprints.items()
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
            # Only the keys are kept in memory; the items are streamed again in each pass.
            keys = [self._source.key(item) for item in shard_items(self._source, self._shard, self._shards)]
            before = None
            # A further pass gives items that failed, and may succeed, their next try.
            while not self._stopping():
                left = any(not state.settled(key) for state in self._progress.values() for key in keys)
                moved = [
                    (len(p.done), len(p.failed), p.tries.total(), sum(map(len, p.replies.values())))
                    for p in self._progress.values()
                ]
                if not left or moved == before:
                    break
                before = moved
                self._source.process(self._todos())
        results = [self._conclude(variant, keys) for variant in self._stores]
        return max(results, key=lambda result: result.remaining)

    def _todos(self) -> Iterator[Todo[ItemT]]:
        for item in shard_items(self._source, self._shard, self._shards):
            key = self._source.key(item)
            for variant, state in self._progress.items():
                if self._stopping():
                    return
                if not state.settled(key):
                    record = functools.partial(self._record, variant, key)
                    yield Todo(item, record, variant, state.replies.get(key, ()))

    def _record(self, variant: str, key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
        self._writers[variant].append(key, outcome, durable=durable)
        self._progress[variant].note(key, outcome)

    def _conclude(self, variant: str, keys: list[str]) -> ShardResult:
        """Count, and write the marker where nothing is left."""
        state, store = self._progress[variant], self._stores[variant]
        done = sum(key in state.done for key in keys)
        failed = Counter(state.failed[key] for key in keys if key in state.failed)
        remaining = len(keys) - done - failed.total()
        assert remaining >= 0, f"{store.folder}: more outcomes than items"
        if remaining == 0:
            spending = self._source.finish(self._shard)
            earlier = ShardMarker.read(store, self._shard)
            ShardMarker(
                items=len(keys),
                done=done,
                failed=failed.total(),
                reasons=dict(sorted(failed.items())),
                max_tries=self._source.limits.max_tries,
                max_replies=self._source.limits.max_replies,
                fingerprint=self._fingerprints[variant],
                shards=self._shards,
                keys_digest=keys_digest(keys),
                attempts=len(journal_files(store.shard(self._shard))),
                repeated=state.repeated,
                damaged_lines=len(self._report.broken),
                changed_files=len(self._corrupted[variant]) + (earlier.changed_files if earlier else 0),
                records=extents(store.shard(self._shard)),
                seconds=round(time.time() - self._started, 3),
                finished_at=time.time(),
                spending=spending,
            ).write(store, self._shard)
        return ShardResult(len(keys), done, failed.total(), remaining, self._stopping())
