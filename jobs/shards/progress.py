"""What is done, failed and left of the items of a store, known from its records alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Reply
from jobs.run.layout import ShardStore
from jobs.shards.journal import ReadReport, WrongFingerprint
from jobs.shards.marker import Spending
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
    limits = Limits()

    @abstractmethod
    def stores(self) -> Mapping[str, ShardStore]:
        """Where records go, by variant; ``""`` names the only one."""

    @abstractmethod
    def settings(self, variant: str) -> Mapping[str, object]:
        """The settings that decide a variant's records. Records made under others are never mixed in."""

    @abstractmethod
    def items(self) -> Iterable[ItemT]:
        """All items of the stage, streamed. Their keys are unique."""

    @abstractmethod
    def key(self, item: ItemT) -> str:
        """The name of an item."""

    def group(self, item: ItemT) -> str:
        """Items of one group go to one shard, such as the questions about an image."""
        return self.key(item)

    @abstractmethod
    def process(self, todos: Iterator[Todo[ItemT]]) -> None:
        """Work on items until they end, and record the outcome of each."""

    def rule_violations(self, reply: Reply) -> str | None:
        """Why a reply should be asked for again; None where it is good."""
        return None

    def finish(self, shard: int) -> Spending:
        """Called after a shard's last item, before its marker is written; returns what the shard cost."""
        return Spending()


class Progress:
    """The state of the items of one store. The order in which outcomes arrive does not change the result."""

    def __init__(self, source: ShardSource[Any]) -> None:
        self._source = source
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # key → reason; will not be tried again
        self.tries: Counter[str] = Counter()  # failures so far
        self.replies: dict[str, tuple[Reply, ...]] = {}  # replies that break the rules, of keys not done yet
        self.usable: set[str] = set()  # of those keys: one of their replies was a success all the same
        self.repeated = 0  # successes for items that were done already

    def settled(self, key: str) -> bool:
        """Whether nothing is left to do for an item."""
        return key in self.done or key in self.failed

    def note(self, key: str, outcome: Ok | Failed) -> None:
        """Take one outcome into account."""
        limits = self._source.limits
        if isinstance(outcome, Ok):
            if key in self.done:
                self.repeated += 1
                return
            if limits.max_replies > 1:
                replies = (*self.replies.pop(key, ()), outcome.value)
                if len(replies) < limits.max_replies and self._source.rule_violations(outcome.value) is not None:
                    self.replies[key] = replies
                    self.usable.add(key)
                    return
            self._done(key)
        elif key in self.done:
            return
        elif outcome.value is not None and outcome.retry:  # paid for and of no use: it counts as a reply, not as a try
            self.replies[key] = (*self.replies.get(key, ()), outcome.value)
            if len(self.replies[key]) < limits.max_replies:
                return
            if key in self.usable:
                self._done(key)
            else:
                self.failed[key] = outcome.reason
        else:
            self.tries[key] += 1
            if not outcome.retry or self.tries[key] >= limits.max_tries:
                self.failed[key] = outcome.reason

    def _done(self, key: str) -> None:
        self.done.add(key)
        self.usable.discard(key)
        self.failed.pop(key, None)
        self.replies.pop(key, None)


def load_progress(
    source: ShardSource[Any], variant: str, fingerprint: str, report: ReadReport, shard: int | None = None
) -> Progress:
    """What is done, from the records.

    Args:
        source: the stage.
        variant: which of its stores.
        fingerprint: of the present settings.
        report: counts damaged lines.
        shard: look at its folder alone, if the number of shards never changed; None: at all folders.

    Raises:
        UserError: records were made under other settings.
    """
    store = source.stores()[variant]
    known = frozen_shards(store)
    progress = Progress(source)
    try:
        for record in read_records(store, report, shard=None if known and known.earlier else shard, expect=fingerprint):
            progress.note(record.key, record.outcome(source.value_type))
    except WrongFingerprint as error:
        raise UserError(
            f"{error.path} was made under other settings (fingerprint {error.found}, now {fingerprint}). Records are never "
            f"mixed: use another --run-dir, or remove the file if you know what it is."
        ) from error
    return progress
