"""Record files that a marker vouches for and that are gone: scratch file systems delete what nobody has touched for weeks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.run.layout import ShardStore
from jobs.shards.journal import ReadReport
from jobs.shards.marker import ShardMarker
from jobs.shards.store import frozen_shards, read_records


@dataclass(frozen=True, slots=True)
class Lost:
    """Files that are gone, and what they held."""

    files: int = 0
    items: int = 0
    dollars: float = 0.0  # that was paid for them, and that redoing them would cost about as much as

    def __add__(self, other: Lost) -> Lost:
        return Lost(self.files + other.files, self.items + other.items, self.dollars + other.dollars)

    def __str__(self) -> str:
        """What is gone, in words; "" where nothing is."""
        if not self.files:
            return ""
        what = f"{self.files:,} files that were finished are gone"
        held = f" with {self.items:,} items" if self.items else ""
        cost = f", which cost ${self.dollars:,.2f} and would again" if self.dollars else ""
        return f"{what}{held}{cost}. Where files are deleted by age, copy them back from a backup, or the next launch makes them again"


def lost_records(store: ShardStore) -> Lost:
    """What is gone of a store. Only names and sizes are looked at, and the records of shards in which a file is gone."""
    known, total = frozen_shards(store), Lost()
    for shard in range(known.shards if known else 0):
        if (marker := ShardMarker.read(store, shard)) is None:
            continue
        sizes = {name: extent.size for name, extent in marker.records.items()}
        gone = [name for name, size in sizes.items() if _size(store.shard(shard) / name) < size]
        if gone:
            left = {record.key for record in read_records(store, ReadReport(), shard=shard)}
            share = sum(sizes[name] for name in gone) / sum(sizes.values())
            total += Lost(len(gone), max(0, marker.items - len(left)), share * marker.spending.dollars)
    return total


def lost_files(folder: Path, names: Iterable[str]) -> Lost:
    """Which of a folder's files are gone."""
    return Lost(sum(not (folder / name).is_file() for name in names))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
