"""A stage for the tests of the loop: every item is done slowly, and each try is noted where no kill can undo it."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from data_prep.outcomes import Emit, Failed, Ok
from jobs.backends.stop import StopFlag
from jobs.run.layout import Store
from jobs.shards.loop import Previous, Work, freeze_shards, run_shard
from slurm.process import REQUEUE


def make_work(folder: Path, items: int, seconds: float = 0.0, setting: int = 1) -> Work[str]:
    """Items item-0 … item-n; every seventh fails for good, every eleventh fails twice and then passes."""
    store = Store(folder / "stage")
    tried = folder / "tried"
    tried.mkdir(parents=True, exist_ok=True)

    def process(
        todo: Iterator[str], emits: Mapping[str, Emit], wanted: Callable[[str, str], bool], previous: Previous
    ) -> None:
        for item in todo:
            number = int(item.removeprefix("item-"))
            with (tried / item).open("a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(seconds)
            if number % 7 == 3:
                emits["only"](item, Failed("seventh", retry=False))
            elif number % 11 == 5 and len((tried / item).read_text().splitlines()) < 3:
                emits["only"](item, Failed("eleventh", retry=True))
            else:
                emits["only"](item, Ok({"square": number * number}))

    return Work(
        stores={"only": store},
        settings={"only": {"setting": setting}},
        items=lambda: (f"item-{i}" for i in range(items)),
        key=lambda item: item,
        process=process,
        max_tries=50,
    )


if __name__ == "__main__":
    folder, items, shard, shards, seconds = sys.argv[1:]
    work = make_work(Path(folder), int(items), float(seconds))
    freeze_shards(work.stores["only"], int(shards))
    result = run_shard(work, int(shard), int(shards), StopFlag().install())
    sys.exit(0 if result.remaining == 0 else REQUEUE)
