"""``done.json`` of a shard: written last and atomically, with contents that can be checked.

::

    {"items": 40, "done": 38, "failed": 2, "remaining": 0, "reasons": {"image_truncated": 2}, "max_tries": 3, ...
     "records": {"records.20260102T030405-node7-311-9f2c.5be1c0ffee12.jsonl": {"size": 18220, "crc": 2741006154}}, "digest": "0a1b2c3d4e5f"}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import read_json, write_json
from jobs.run.layout import ShardStore
from jobs.shards.digest import digest
from jobs.shards.journal import Extent


@dataclass(frozen=True, slots=True)
class Spending:
    """Tokens and dollars of a number of replies."""

    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.dollars + other.dollars,
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """What a stage adds to a shard's marker."""

    spending: Spending = Spending()  # of all records in the shard's folder, those included that do not count
    outputs: Sequence[Path] = ()  # files in the shard's folder that it made from the records


@dataclass(frozen=True, slots=True)
class ShardMarker:
    """What a finished shard came to. ``items == done + failed``."""

    items: int
    done: int
    failed: int
    reasons: dict[str, int]  # of the failures
    unsatisfied: int  # items that ended with a reply that is not good: raising max_replies gives them another one
    answered: int  # items that have a reply, of use or not
    max_tries: int  # the limits it was finished under: raising one gives failed items another try
    max_replies: int
    fingerprint: str  # of the settings that made the records
    input_digest: str  # of the files that the items were read from
    items_digest: str  # of the items' keys and what each is made from
    shards: int  # how many there were
    attempts: int  # record files
    repeated: int  # successes for items that were done already: two attempts at once, or a reply in flight at a kill
    damaged_lines: int  # records with a wrong checksum, skipped and done again
    changed_files: int  # record files that were damaged after the shard was finished, and repaired
    records: dict[str, Extent] = field(default_factory=dict)  # all of its folder, by file name: it vouches for them
    outputs: dict[str, Extent] = field(default_factory=dict)  # likewise, of the files made from them
    seconds: float = 0.0  # of the attempt that finished it
    finished_at: float = 0.0  # Unix time
    spending: Spending = Spending()

    @property
    def made_under(self) -> tuple[int, str, str]:
        """What decides whether it is up to date, as far as that shows without reading the items."""
        return self.shards, self.fingerprint, self.input_digest

    @classmethod
    def read(cls, store: ShardStore, shard: int) -> ShardMarker | None:
        """The marker of a shard; None where there is none, or where it is not as it was written."""
        fields = read_json(store.done(shard))
        if fields is None or fields.pop("digest", None) != digest(fields):
            return None
        for files in ("records", "outputs"):
            fields[files] = {name: Extent(**extent) for name, extent in fields[files].items()}
        return cls(**{**fields, "spending": Spending(**fields["spending"])})

    def write(self, store: ShardStore, shard: int) -> None:
        """Put it in its place, with a digest of itself."""
        fields = dataclasses.asdict(self)
        write_json(store.done(shard), fields | {"digest": digest(fields)})
