"""A stage for the tests of the loop: every item is slow, and each try is noted where no kill can undo it."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.outcomes import Failed, Ok, Todo
from jobs.backends.stop import StopFlag
from jobs.run.layout import ShardStore
from jobs.shards.loop import run_shard
from jobs.shards.progress import Limits, ShardSource
from jobs.shards.store import freeze_shards
from slurm.process import REQUEUE


@dataclass(frozen=True)
class Square:
    """The result of an item."""

    square: int


class Squares(ShardSource[str]):
    """Items item-0 … item-n; every seventh fails for good, every eleventh fails twice and then passes."""

    value_type = Square

    def __init__(self, folder: Path, items: int, seconds: float = 0.0, setting: int = 1, max_tries: int = 50) -> None:
        self.store = ShardStore(folder / "stage")
        self.limits = Limits(max_tries)
        self._tried, self._items, self._seconds, self._setting = folder / "tried", items, seconds, setting
        self._tried.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, str] = {}  # of items that changed

    def stores(self) -> dict[str, ShardStore]:
        return {"": self.store}

    def settings(self, variant: str) -> dict[str, int]:
        return {"setting": self._setting}

    def items(self) -> Iterator[str]:
        return (f"item-{number}" for number in range(self._items))

    def key(self, item: str) -> str:
        return item

    def made_from(self, item: str) -> str:
        return self.content.get(item, "as it was")

    def process(self, todos: Iterator[Todo[str]]) -> None:
        for todo in todos:
            number = int(todo.item.removeprefix("item-"))
            with (self._tried / todo.item).open("a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(self._seconds)
            if number % 7 == 3:
                todo.record(Failed("seventh", retry=False))
            elif number % 11 == 5 and len((self._tried / todo.item).read_text().splitlines()) < 3:
                todo.record(Failed("eleventh", retry=True))
            else:
                todo.record(Ok(Square(number * number)))


if __name__ == "__main__":
    folder, items, shard, shards, seconds = sys.argv[1:]
    source = Squares(Path(folder), int(items), float(seconds))
    freeze_shards(source.store, int(shards))
    result = run_shard(source, int(shard), int(shards), StopFlag().install())
    sys.exit(0 if result.remaining == 0 else REQUEUE)
