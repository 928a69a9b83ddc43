"""What is done, failed and left of the items of a store, known from its records alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import Reply
from jobs.run.layout import ShardStore
from jobs.shards.digest import digest
from jobs.shards.journal import ReadReport, Record
from jobs.shards.marker import Finished
from jobs.shards.store import frozen_shards, read_records

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Limits:
    """How often an item is tried."""

    max_tries: int = 3  # transient failures before an item counts as failed
    max_replies: int = 1  # invalid replies to accept before keeping the best


class ShardSource(ABC, Generic[ItemT]):
    """What the shard loop asks of a stage. Each of its stores is done and resumed on its own."""

    value_type: ClassVar[type[Any]]  # the dataclass of a success: ImageFacts, Reply, Prediction
    paid: ClassVar[bool] = False  # its records cost money: none is made again without consent
    looks_at_files: ClassVar[bool] = False  # `made_from` looks at files that are not the run's
    other_content: ClassVar[str] = "items that have changed since"  # "40 ..."; what it means that a digest differs
    limits = Limits()

    @abstractmethod
    def stores(self) -> Mapping[str, ShardStore]:
        """Where records go, by variant; ``""`` names the only one."""

    @abstractmethod
    def settings(self, variant: str) -> Mapping[str, object]:
        """The settings that decide a variant's records. Records made under others do not count."""

    @abstractmethod
    def items(self) -> Iterable[ItemT]:
        """All items of the stage, streamed. Their keys are unique."""

    @abstractmethod
    def key(self, item: ItemT) -> str:
        """The name of an item."""

    @abstractmethod
    def made_from(self, item: ItemT) -> str:
        """A digest of the content that decides an item's record. A record made from other content does not count."""

    def identified(self, items: Iterable[ItemT]) -> Iterator[tuple[ItemT, str]]:
        """Items with their `made_from`."""
        return ((item, self.made_from(item)) for item in items)

    def group(self, item: ItemT) -> str:
        """Items of one group go to one shard, such as the questions about an image."""
        return self.key(item)

    @abstractmethod
    def process(self, todos: Iterator[Todo[ItemT]]) -> None:
        """Work on items until they end, and record the outcome of each."""

    def rule_violations(self, reply: Reply) -> str | None:
        """Why a reply should be asked for again; None where it is good."""
        return None

    def input_digest(self) -> str:
        """A digest of the files that the items are read from, cheaper than reading them."""
        return ""

    def may_redo(self) -> bool:
        """Whether the user agreed to pay again for items that changed."""
        return False

    def redo_cost(self, items: int) -> str:
        """What doing items again would cost, as the end of a sentence."""
        return ""

    def finish(self, shard: int, made: Mapping[str, str]) -> Finished:
        """Called after a shard's last item, before its marker is written.

        Args:
            shard: its index.
            made: what each of its items is made from, by key.
        """
        return Finished()


@dataclass(slots=True)
class Superseded:
    """What an item has of records that do not count: they were made from other content or under other settings."""

    content: bool = False  # under the present settings, but from other content
    settings: str = ""  # the fingerprint of other settings
    paid: bool = False
    dollars: float = 0.0


class Progress:
    """The state of the items of one store. The order in which outcomes arrive does not change the result.

    Args:
        source: the stage.
        fingerprint: of the present settings.
        made: what each item is made from, by key; None for an item whose content is not compared. Other items are ignored.
    """

    def __init__(self, source: ShardSource[Any], fingerprint: str, made: Mapping[str, str | None]) -> None:
        self._source, self.fingerprint, self.made = source, fingerprint, made
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # key → reason; will not be tried again
        self.unsatisfied: set[str] = set()  # of both: no reply is good; a raised limit gives another one
        self.tries: Counter[str] = Counter()  # failures so far that were not paid for
        self.poor: Counter[str] = Counter()  # replies so far that are not good
        self.replies: dict[str, tuple[Reply, ...]] = {}  # of those, of keys that are not settled
        self.answered: set[str] = set()  # keys with a reply, of use or not
        self.repeated = 0  # successes for items that were done already
        self.superseded: dict[str, Superseded] = {}
        self._usable: set[str] = set()  # keys with a reply that is a success, though not good
        self._of_no_use: dict[str, str] = {}  # key → why a reply was no success
        self._ended: dict[str, str] = {}  # key → why no further try is made, however many replies there are

    def settled(self, key: str) -> bool:
        """Whether nothing is left to do for an item."""
        return key in self.done or key in self.failed

    def counts(self, record: Record) -> bool:
        """Whether a record was made from the present content of an item, under the present settings."""
        if record.settings != self.fingerprint or record.key not in self.made:
            return False
        return self.made[record.key] in (record.made, None)

    def read(self, record: Record) -> bool:
        """Take one record into account; whether it counts."""
        if self.counts(record):
            self.note(record.key, record.outcome(self._source.value_type))
            return True
        if record.key in self.made:
            known = self.superseded.setdefault(record.key, Superseded())
            if record.settings == self.fingerprint:
                known.content = True
            else:
                known.settings = record.settings
            known.paid |= record.value is not None
            known.dollars += (record.value or {}).get("dollars", 0.0)
        return False

    def outdated(self) -> dict[str, Superseded]:
        """Items that are not settled, though they have records: those do not count any more."""
        return {key: known for key, known in self.superseded.items() if not self.settled(key)}

    def note(self, key: str, outcome: Ok | Failed) -> None:
        """Take one outcome into account."""
        value: Any = outcome.value
        if isinstance(value, Reply):
            self.answered.add(key)
        if key in self.done and key not in self._usable:
            self.repeated += isinstance(outcome, Ok)
        elif isinstance(outcome, Ok) and self._source.rule_violations(value) is None:
            self._usable.discard(key)
            self._settle(key, good=True)
        elif isinstance(outcome, Ok) or (value is not None and outcome.retry):
            if isinstance(outcome, Ok):
                self._usable.add(key)
            else:  # paid for and of no use: it counts as a reply, not as a try
                _lowest(self._of_no_use, key, outcome.reason)
            self.poor[key] += 1
            self.replies[key] = (*self.replies.get(key, ()), value)
            self._settle(key)
        else:
            self.tries[key] += 1
            if not outcome.retry or self.tries[key] >= self._source.limits.max_tries:
                _lowest(self._ended, key, outcome.reason)
            self._settle(key)

    def _settle(self, key: str, *, good: bool = False) -> None:
        """Decide whether an item is done or failed: the best of its replies counts, whatever came after it."""
        enough = not good and self.poor[key] >= self._source.limits.max_replies
        (self.unsatisfied.add if enough else self.unsatisfied.discard)(key)
        if not (good or enough or key in self._ended):
            return
        self.replies.pop(key, None)
        if good or key in self._usable:
            self.done.add(key)
            self.failed.pop(key, None)
        else:
            reasons = [self._ended.get(key), self._of_no_use.get(key) if enough else None]
            self.failed[key] = min(reason for reason in reasons if reason is not None)


def _lowest(reasons: dict[str, str], key: str, reason: str) -> None:
    """Keep one reason of several, the same one in whatever order they arrive."""
    reasons[key] = min(reason, reasons.get(key, reason))


def load_progress(
    source: ShardSource[Any],
    variant: str,
    made: Mapping[str, str | None],
    report: ReadReport,
    shard: int | None = None,
) -> Progress:
    """What is done, from the records.

    Args:
        source: the stage.
        variant: which of its stores.
        made: the items in question, by key, and what each is made from.
        report: counts damaged lines.
        shard: look at its folder alone, if the number of shards never changed; None: at all folders.
    """
    progress = Progress(source, digest(source.settings(variant)), made)
    for record in stored_records(source, variant, report, shard):
        progress.read(record)
    return progress


def stored_records(
    source: ShardSource[Any], variant: str, report: ReadReport, shard: int | None = None
) -> Iterator[Record]:
    """All records, whatever they were made from, that a shard's items may have; without a shard: of the whole store."""
    store = source.stores()[variant]
    known = frozen_shards(store)
    return read_records(store, report, shard=None if known and known.earlier else shard)


def made_of(source: ShardSource[ItemT]) -> dict[str, str]:
    """What each item of a stage is made from, by key."""
    return {source.key(item): made for item, made in source.identified(source.items())}


def settled_outcomes(
    source: ShardSource[Any], variant: str, made: Mapping[str, str | None], shard: int | None = None
) -> dict[str, Ok | Failed]:
    """The outcome that counts for each item that is settled: the first success, or the reason why it failed.

    Args:
        source, variant, made, shard: as for `load_progress`.
    """
    progress = Progress(source, digest(source.settings(variant)), made)
    successes: dict[str, Ok] = {}
    for record in stored_records(source, variant, ReadReport(), shard):
        if progress.read(record) and record.ok and record.key not in successes:
            successes[record.key] = Ok(record.outcome(source.value_type).value)
    failed = {key: Failed(reason) for key, reason in progress.failed.items()}
    return {key: outcome for key, outcome in successes.items() if key in progress.done} | failed
