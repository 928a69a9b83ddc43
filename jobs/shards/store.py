"""The records of a whole stage: a folder of shards, each with a few record files.

Records are found by their keys, wherever they lie. So a run can go on with another number of shards, and neither loses
nor repeats work.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import read_json, write_json
from jobs.run.layout import ShardStore
from jobs.shards.journal import ReadReport, Record, journal_files, read_journal


@dataclass(frozen=True, slots=True)
class FrozenShards:
    """How many shards a store has; written before its first task starts."""

    shards: int
    earlier: tuple[int, ...] = ()  # numbers it had before: records may then lie in any shard's folder


@functools.lru_cache(maxsize=1)  # the questions about an image follow one another
def shard_of(group: str, shards: int) -> int:
    """The shard of an item or group: a hash of its name, so it depends on nothing else but the number of shards."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest()) % shards


def freeze_shards(store: ShardStore, shards: int) -> None:
    """Fix the number of shards before anything starts, and remember the earlier ones."""
    known = frozen_shards(store)
    if known is None:
        # The file may have been lost: where there are shard folders, records may lie in any of them, as after a change.
        earlier: tuple[int, ...] = (shards,) if (store.folder / "shards").is_dir() else ()
    elif known.shards == shards:
        return
    else:
        earlier = tuple(sorted({*known.earlier, known.shards}))
    for folder in shard_folders(
        store
    ):  # made from the records, by the number of shards: each shard writes its own again
        for path in (*folder.glob("dataset_*.csv"), folder / "images.jsonl"):
            path.unlink(missing_ok=True)
    write_json(store.shards_file, FrozenShards(shards, earlier))


def frozen_shards(store: ShardStore) -> FrozenShards | None:
    """The number of shards that was fixed for a store; None before that, or where the file was damaged."""
    known = read_json(store.shards_file) or {}
    shards, earlier = known.get("shards"), known.get("earlier")
    return FrozenShards(shards, tuple(earlier)) if isinstance(shards, int) and isinstance(earlier, list) else None


def shard_folders(store: ShardStore) -> list[Path]:
    """All folders of shards, those of earlier numbers of shards included."""
    root = store.folder / "shards"
    return sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def read_records(store: ShardStore, report: ReadReport, *, shard: int | None = None) -> Iterator[Record]:
    """Stream the records of one shard's folder, or of the whole store, whatever they were made from."""
    for folder in shard_folders(store) if shard is None else [store.shard(shard)]:
        # A network file system may list a folder as it was a minute ago on another node. A file that the marker names is
        # opened by name, whether it is listed or not.
        marker = read_json(folder / "done.json") or {}
        for path in sorted({*journal_files(folder), *(folder / name for name in marker.get("records", {}))}):
            yield from read_journal(path, report)
