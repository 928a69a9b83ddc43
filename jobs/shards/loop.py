"""The loop that every sharded stage runs.

Validate, generate and evaluate differ only in what they do to an item. Everything else is here: which items belong to a
shard, which of them are done already (whatever shard or attempt did them), appending outcomes so that a kill loses
nothing, trying again what may succeed, stopping when asked, counting, and the marker at the end.

The promise: ``items = done + failed + remaining``, at any moment, after any kill.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_prep.files import read_json, write_json
from data_prep.outcomes import Emit, Failed, Ok, UserError
from jobs.run.layout import Store
from jobs.shards.digest import differences, digest, freeze_settings, keys_digest
from jobs.shards.journal import (
    Damage,
    JournalWriter,
    WrongFingerprint,
    changed_files,
    extents,
    journal_files,
    new_attempt,
    read_journal,
)

T = TypeVar("T")

Previous = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Work(Generic[T]):
    """What one sharded stage does; the loop does the rest.

    A stage that answers for several models at once has several stores, each done and resumed on its own.
    """

    stores: Mapping[str, Store]
    settings: Mapping[str, dict[str, Any]]  # by store: what makes its records; mixing is refused
    items: Callable[[], Iterable[T]]  # all items of the stage, streamed; keys are unique
    key: Callable[[T], str]
    process: Callable[[Iterator[T], Mapping[str, Emit], Callable[[str, str], bool], Previous], None]
    group: Callable[[T], str] | None = None  # items of one group go to one shard (the questions about an image)
    max_tries: int = 3  # failures of an item that may pass, before it counts as failed
    max_replies: int = 1  # successes that break the stage's rules, before the item counts as done all the same
    verdict: Callable[[dict[str, Any]], str | None] = lambda value: None  # why a stored success breaks the rules
    finish: Callable[[int], dict[str, Any]] = (
        lambda shard: {}
    )  # after the last item; returns more counts for the marker


@dataclass(slots=True)
class Progress:
    """What is known of the items of one store from its records alone."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)  # key → reason; will not be tried again
    tries: Counter[str] = field(default_factory=Counter)  # failures so far of keys that may be tried again
    replies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # stored successes of keys not done yet
    repeated: int = (
        0  # successes for items that were done already: two attempts at once, or a reply in flight at a kill
    )

    def settled(self, key: str) -> bool:
        """Whether nothing is left to do for an item."""
        return key in self.done or key in self.failed

    def note(self, key: str, outcome: Ok | Failed, work: Work[Any]) -> None:
        """Take one outcome into account; the order of attempts does not matter to the end."""
        if isinstance(outcome, Ok):
            if key in self.done:
                self.repeated += 1
                return
            replies = self.replies.pop(key, [])
            replies.append(outcome.value)
            if len(replies) < work.max_replies and work.verdict(outcome.value) is not None:
                self.replies[key] = replies
            else:
                self.done.add(key)
                self.failed.pop(key, None)
        elif key not in self.done:
            self.tries[key] += 1
            if not outcome.retry or self.tries[key] >= work.max_tries:
                self.failed[key] = outcome.reason


@functools.lru_cache(maxsize=1)  # the questions about an image follow one another
def shard_of(group: str, shards: int) -> int:
    """The shard of an item or group: by hash, so that it depends on nothing but the name and the number of shards."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest()) % shards


def freeze_shards(store: Store, shards: int) -> None:
    """Fix the number of shards before anything starts. A change is remembered: records then lie in any shard's folder."""
    known = known_shards(store)
    if known is None:
        # Where the file was lost, records may lie in any folder, as after a change.
        earlier = [shards] if (store.folder / "shards").is_dir() else []
        write_json(store.shards_file, {"shards": shards, "earlier": earlier})
    elif known["shards"] != shards:
        earlier = sorted({*known["earlier"], known["shards"]})
        write_json(store.shards_file, {"shards": shards, "earlier": earlier})


def known_shards(store: Store) -> dict[str, Any] | None:
    """What `freeze_shards` wrote, unless it was damaged."""
    known = read_json(store.shards_file)
    whole = known is not None and isinstance(known.get("shards"), int) and isinstance(known.get("earlier"), list)
    return known if whole else None


def frozen_shards(store: Store) -> int | None:
    """The number of shards that was fixed for a store, if it was."""
    known = known_shards(store)
    return known["shards"] if known else None


def outcome_of(record: dict[str, Any]) -> Ok | Failed:
    """The outcome that a record holds."""
    if record["ok"]:
        return Ok(record["value"])
    return Failed(record["reason"], record["detail"], record["retry"], record.get("value"))


def store_records(
    store: Store, damage: Damage, *, shard: int | None = None, expect: str | None = None
) -> Iterator[dict[str, Any]]:
    """Stream the records of one shard's folder, or of the whole store.

    Raises:
        WrongFingerprint: see `read_journal`.
    """
    if shard is None:
        root = store.folder / "shards"
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    else:
        folders = [store.shard(shard)]
    for folder in folders:
        # On another node a listing may be a minute old; a file that the marker names is found without one.
        marker = read_json(folder / "done.json") or {}
        for path in sorted({*journal_files(folder), *(folder / name for name in marker.get("records", {}))}):
            yield from read_journal(path, damage, expect=expect)


def load_progress(store: Store, work: Work[Any], shard: int | None, fingerprint: str, damage: Damage) -> Progress:
    """What is done, from the records: of one shard's folder while the number of shards never changed, else of all.

    Raises:
        UserError: records were made under another fingerprint.
    """
    known = known_shards(store) or {"earlier": []}
    progress = Progress()
    try:
        for record in store_records(store, damage, shard=None if known["earlier"] else shard, expect=fingerprint):
            progress.note(record["key"], outcome_of(record), work)
    except WrongFingerprint as error:
        raise UserError(
            f"{error.path} was made with other settings (fingerprint {error.found}, now {fingerprint}). Records are never "
            f"mixed: use another --run-dir, or remove the file if you know what it is."
        ) from error
    return progress


def shard_items(work: Work[T], shard: int, shards: int) -> Iterator[T]:
    """The items of one shard, streamed."""
    group = work.group or work.key
    return (item for item in work.items() if shard_of(group(item), shards) == shard)


def read_marker(store: Store, shard: int) -> dict[str, Any] | None:
    """The marker of a shard, or None where there is none, or one that is not as it was written."""
    marker = read_json(store.done(shard))
    if marker is None or marker.pop("digest", None) != digest(marker):
        return None
    return marker


def shard_marker_valid(marker: dict[str, Any] | None, fingerprint: str, shards: int, items: int, keys: str) -> bool:
    """Whether a done.json speaks of just these items, made with just these settings, and left nothing over."""
    return bool(
        marker
        and marker.get("fingerprint") == fingerprint
        and marker.get("shards") == shards
        and marker.get("items") == items
        and marker.get("keys_digest") == keys
        and marker.get("remaining") == 0
    )


def may_try_more(marker: dict[str, Any] | None, work: Work[Any]) -> bool:
    """Whether items that failed have tries left, since the limits were raised after the shard was finished."""
    limits = (marker or {}).get("limits", [work.max_tries, work.max_replies])
    return bool(marker and marker["failed"]) and (work.max_tries > limits[0] or work.max_replies > limits[1])


def pending_shards(work: Work[T], shards: int) -> list[int]:
    """The shards that have something left to do: those without a valid marker, or whose records were damaged since.

    Raises:
        UserError: a store holds records made with other settings.
    """
    keys: list[list[str]] = [[] for _ in range(shards)]
    group = work.group or work.key
    for item in work.items():
        keys[shard_of(group(item), shards)].append(work.key(item))
    digests = [keys_digest(k) for k in keys]
    pending = set()
    for name, store in work.stores.items():
        known = read_json(store.settings)
        if known is not None and differences(known, work.settings[name]):
            freeze_settings(store, work.settings[name])  # raises, and says which setting
        fingerprint = digest(work.settings[name])
        finished, frozen = [], known_shards(store)
        for shard in range(shards):
            marker = read_marker(store, shard)
            valid = shard_marker_valid(marker, fingerprint, shards, len(keys[shard]), digests[shard])
            if frozen is None or not valid or may_try_more(marker, work) or changed_since(store, shard, marker):
                pending.add(shard)
            else:
                finished.append(shard)
        if finished and frozen and frozen["earlier"]:
            # Records lie in the folders of earlier shards too, for which the markers do not vouch: they are counted.
            progress = load_progress(store, work, None, fingerprint, Damage())
            pending.update(s for s in finished if not all(map(progress.settled, keys[s])))
    return sorted(pending)


def changed_since(store: Store, shard: int, marker: dict[str, Any] | None) -> list[Path]:
    """The record files of a shard that were damaged, cut or deleted since its marker was written."""
    return changed_files(store.shard(shard), (marker or {}).get("records", {}))


@dataclass(slots=True)
class ShardResult:
    """How one attempt at one shard ended."""

    items: int
    done: int
    failed: int
    remaining: int
    stopped: bool


def run_shard(work: Work[T], shard: int, shards: int, stopping: Callable[[], bool]) -> ShardResult:
    """Do what is left of one shard, as far as time allows.

    Args:
        work: the stage.
        shard: index, from 0.
        shards: how many there are.
        stopping: becomes true when the task was asked to stop; the iterator of items ends then.

    Raises:
        UserError: the records on disk were made with other settings.
        OSError: the disk is full or gone.
    """
    started = time.time()
    attempt = new_attempt()
    damage = Damage()
    fingerprints = {name: freeze_settings(store, work.settings[name]) for name, store in work.stores.items()}
    progress = {
        name: load_progress(store, work, shard, fingerprints[name], damage) for name, store in work.stores.items()
    }
    for line in damage.broken:
        print(f"damaged record passed over, its item is done again: {line}", flush=True)
    changed = {name: changed_since(store, shard, read_marker(store, shard)) for name, store in work.stores.items()}
    for path in (path for paths in changed.values() for path in paths):
        print(f"changed since the shard was finished, what it lost is done again: {path}", flush=True)
    writers = {
        name: JournalWriter(store.shard(shard), attempt, fingerprints[name]) for name, store in work.stores.items()
    }

    def emitter(name: str) -> Emit:
        def emit(key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
            writers[name].append(key, outcome, durable=durable)
            progress[name].note(key, outcome, work)

        return emit

    def wanted(name: str, key: str) -> bool:
        return not progress[name].settled(key)

    def todo() -> Iterator[T]:
        for item in shard_items(work, shard, shards):
            if stopping():
                return
            key = work.key(item)
            if any(wanted(name, key) for name in work.stores):
                yield item

    emits = {name: emitter(name) for name in work.stores}
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        # The items themselves are streamed again for each pass; what is kept of them is their keys.
        keys = [work.key(item) for item in shard_items(work, shard, shards)]
        before = None
        # Another pass gives items that failed, and may pass, their next try; it ends when nothing moves any more.
        while not stopping():
            left = sum(any(wanted(name, key) for name in work.stores) for key in keys)
            moved = {name: (len(p.done), len(p.failed), p.tries.total()) for name, p in progress.items()}
            if left == 0 or moved == before:
                break
            before = moved
            work.process(todo(), emits, wanted, _previous(progress))

    return _conclude(work, keys, shard, shards, progress, fingerprints, damage, changed, started, stopping())


def _previous(progress: Mapping[str, Progress]) -> Previous:
    """Stored replies of items that are not done. Only stages with one store ask again."""
    if len(progress) > 1:
        return {}
    (only,) = progress.values()
    return {key: list(replies) for key, replies in only.replies.items()}


def _conclude(
    work: Work[Any],
    keys: list[str],
    shard: int,
    shards: int,
    progress: Mapping[str, Progress],
    fingerprints: Mapping[str, str],
    damage: Damage,
    changed: Mapping[str, list[Path]],
    started: float,
    stopped: bool,
) -> ShardResult:
    """Count, and write the marker of every store that has nothing left."""
    worst = ShardResult(len(keys), len(keys), 0, 0, stopped)
    for name, store in work.stores.items():
        state = progress[name]
        done = sum(key in state.done for key in keys)
        failed = Counter(state.failed[key] for key in keys if key in state.failed and key not in state.done)
        remaining = len(keys) - done - failed.total()
        assert remaining >= 0, f"{store.folder}: more outcomes than items"
        if remaining >= worst.remaining:
            worst = ShardResult(len(keys), done, failed.total(), remaining, stopped)
        if remaining == 0:
            extra = work.finish(shard)
            files = journal_files(store.shard(shard))
            marker = {
                "items": len(keys),
                "done": done,
                "failed": failed.total(),
                "remaining": 0,
                "reasons": dict(sorted(failed.items())),
                "limits": [work.max_tries, work.max_replies],
                "fingerprint": fingerprints[name],
                "shards": shards,
                "keys_digest": keys_digest(keys),
                "attempts": len(files),
                "repeated": state.repeated,
                "damaged_lines": len(damage.broken),
                "changed_files": len(changed[name]) + (read_marker(store, shard) or {}).get("changed_files", 0),
                "records": extents(store.shard(shard)),
                "seconds": round(time.time() - started, 3),
                "finished_at": time.time(),
                **extra,
            }
            write_json(store.done(shard), marker | {"digest": digest(marker)})
    return worst


def latest_outcomes(store: Store, damage: Damage) -> dict[str, Ok | Failed]:
    """The outcome that counts for every item of a store: a success over a failure, the first success over later ones."""
    chosen: dict[str, Ok | Failed] = {}
    for record in store_records(store, damage):
        outcome = outcome_of(record)
        known = chosen.get(record["key"])
        if known is None or isinstance(known, Failed):
            chosen[record["key"]] = outcome
    return chosen
