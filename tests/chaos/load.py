"""Measures time and memory of very large runs: ``python -m tests.chaos.load``, about ten minutes.

Listings go through the real task. The million items of the sharded stages go through the real loop, journal and markers; only
the work on each item is stubbed out. Each figure is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from data_prep.files import write_json, write_jsonl
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import ImageFacts, Product, Reply
from jobs.config import load_config
from jobs.pipeline import make_stage
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.run.run import load_run, open_run
from jobs.shards.digest import text_digest
from jobs.shards.loop import run_shard
from jobs.shards.progress import ShardSource
from jobs.shards.store import shard_of
from tests.chaos.measure import measured, measured_task
from tests.conftest import write_config
from tests.data_prep.conftest import listing

STEPS = (Step("validate"), Step("generate"), Step("evaluate", "blip"))


def write_listings(root: Path, good: int, rejected: int) -> None:
    """Write listings in ABO's layout, of which ``good`` qualify."""
    for folder in ("listings/metadata", "images/metadata", "images/small"):
        (root / folder).mkdir(parents=True)
    (root / "facts.jsonl").touch()
    Image.effect_noise((64, 64), 80).convert("RGB").save(root / "images/small/a.jpg")
    with gzip.open(root / "listings/metadata/listings_0.json.gz", "wb", 1) as file:
        for number in range(good):
            file.write(orjson.dumps(listing(f"B{number:09}")) + b"\n")
        for number in range(rejected):
            file.write(orjson.dumps(listing(f"R{number:09}", item_keywords=[])) + b"\n")
    with gzip.open(root / "images/metadata/images.csv.gz", "wb", 1) as file:
        file.write(b"image_id,height,width,path\n")
        for number in range(good):
            file.write(b"image-B%09d,64,64,a.jpg\n" % number)


def value_of(stage: str, key: str) -> dict[str, Any]:
    """What the stage would record for an item, in realistic size."""
    if stage == "validate":
        record: Any = ImageFacts(f"image-{key}", "a.jpg", "0" * 64, 64, 64, "JPEG", "0" * 16, "f" * 96)
    else:
        pairs = [{"question": f"What is thing {n}?", "answer": "red", "category": "easy"} for n in range(5)]
        record = Reply(key, f"image-{key}", orjson.dumps(pairs).decode(), "STOP", "m", 900, 150, 1e-4)
    return dataclasses.asdict(record)


def fill(run: RunDir, items: int, shards: int, unfinished: int = 0) -> None:
    """Finish the sharded stages of a run, except for some shards that are left half done."""
    _, config = load_run(run.path)
    parts: list[list[str]] = [[] for _ in range(shards)]
    for number in range(items):
        key = f"B{number:09}"
        parts[shard_of(key, shards)].append(key)
    for step in STEPS:
        stage = make_stage(step, run, config)
        stage.before_tasks()
        for shard, keys in enumerate(parts):
            most = len(keys) // 2 if shard < unfinished else len(keys)
            run_shard(Fed(stage, lambda keys=keys: keys, most), shard, shards, lambda: False)


class Fed(ShardSource[str]):
    """A stage with its stores and settings but other items, of which only the first ``most`` are processed."""

    def __init__(self, stage: Any, items: Callable[[], Iterable[str]], most: int) -> None:
        self._stage, self._items, self._most = stage, items, most
        self.value_type = stage.value_type
        self.stores, self.settings, self.input_digest = stage.stores, stage.settings, stage.input_digest

    def stores(self) -> Mapping[str, ShardStore]:
        raise AssertionError

    def settings(self, variant: str) -> dict[str, Any]:
        raise AssertionError

    def items(self) -> Iterable[str]:
        return self._items()

    def key(self, item: str) -> str:
        return item

    def made_from(self, item: str) -> str:
        return text_digest(item)

    def process(self, todos: Iterator[Todo[str]]) -> None:
        for number, (_, same) in enumerate(itertools.groupby(todos, lambda todo: todo.item)):
            if number == self._most:
                return
            for todo in same:
                broken = number % 100 == 7
                todo.record(Failed("image_broken") if broken else Ok(value_of(self._stage.name, todo.item)))


def make_run(folder: Path, items: int, shards: int, unfinished: int) -> RunDir:
    """Create a run whose stages are finished, except for ``unfinished`` shards of each."""
    write_listings(folder / "abo", 2, 0)
    config = write_config(
        folder / "c.yaml",
        folder / "abo",
        validate={"shards": shards},
        generate={"shards": shards},
        evaluate={"shards": shards, "bertscore_model": None},
    )
    run, _ = open_run(folder / "run", load_config(config), [])
    products = (Product(f"B{n:09}", f"image-B{n:09}", "a.jpg", "mug", "MUG", "red", ["mug"]) for n in range(items))
    write_jsonl(run.products, products)
    write_jsonl(run.rejected("prepare"), ({"item_id": f"R{n:09}", "reason": "empty_keywords"} for n in range(100_000)))
    done = {"seconds": 1.0, "settings": {}, "inputs": {}, "outputs": {}, "reasons": {"empty_keywords": 100_000}}
    counts = {"listings": items + 100_000, "products": items, "rejected": 100_000}
    write_json(run.done_file(Step("prepare")), done | {"counts": counts})
    splits = {"questions": items, "train": 0, "val": 0, "test": items}
    write_json(run.done_file(Step("curate")), done | {"counts": splits, "reasons": {}})
    for step in (Step("train", "blip"), Step("report")):
        write_json(run.done_file(step), done | {"counts": {"steps": 1}, "reasons": {}})
    fill(run, items, shards, unfinished)
    return run


def one_shard(folder: Path, items: int) -> None:
    """Process one shard; `measure_loop` runs this in a process of its own."""
    config = write_config(folder / "c.yaml", folder / "abo", validate={"shards": 1})
    run, _ = open_run(folder / "run", load_config(config), [])
    stage = make_stage(STEPS[0], *load_run(run.path))
    stage.before_tasks()

    def keys() -> Iterator[str]:
        return (f"B{number:09}" for number in range(items))

    fed = Fed(stage, keys, items)
    started = time.monotonic()
    assert run_shard(fed, 0, 1, lambda: False).remaining == 0
    print(f"first {time.monotonic() - started:.1f}")
    started = time.monotonic()
    assert run_shard(fed, 0, 1, lambda: False).remaining == 0
    print(f"again {time.monotonic() - started:.1f}")


def measure_loop(folder: Path, items: int) -> tuple[int, float]:
    """Peak MB and seconds of a task that processes one shard, then finds it all done."""
    write_listings(folder / "abo", 2, 0)
    program = "import sys; from pathlib import Path; from tests.chaos.load import one_shard; one_shard(Path(sys.argv[1]), int(sys.argv[2]))"
    megabytes, seconds, _ = measured("-c", program, str(folder), str(items))
    return megabytes, seconds


def measure_prepare(folder: Path, good: int, rejected: int) -> tuple[int, float]:
    """Peak MB and seconds of the task that reads listings."""
    write_listings(folder / "abo", good, rejected)
    config = write_config(folder / "c.yaml", folder / "abo")
    run, _ = open_run(folder / "run", load_config(config), [])
    megabytes, seconds, _ = measured_task(run.path, "prepare")
    return megabytes, seconds


def measure_status(run: RunDir) -> tuple[int, float]:
    """Peak MB and seconds of ``launch.py status``."""
    megabytes, seconds, _ = measured("launch.py", "status", str(run.path))
    return megabytes, seconds


def main() -> int:
    """Run from the command line; print one line per figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1_000)
    arguments = parser.parse_args()
    items, shards = arguments.items, arguments.shards

    def say(what: str, figures: tuple[int, float]) -> None:
        print(f"{what:<86}{figures[0]:>6,} MB {figures[1]:>8.1f} s", flush=True)

    with tempfile.TemporaryDirectory(prefix="load-") as name:
        folder = Path(name)
        say("prepare: 100,000 listings kept", measure_prepare(folder / "p1", 100_000, 0))
        say("prepare: 100,000 listings kept, 100,000 rejected", measure_prepare(folder / "p2", 100_000, 100_000))
        for count in (items // 100, items // 10, items):
            say(
                f"loop: {count:,} items in one shard, and again when all are done",
                measure_loop(folder / f"l{count}", count),
            )
        done = make_run(folder / "done", items, shards, 0)
        say(f"status: 7 stages, {items:,} items, {shards:,} shards, all done", measure_status(done))
        half = make_run(folder / "half", items, shards, max(1, shards // 20))
        say("status: the same, a shard in 20 in the middle of its items", measure_status(half))
        started = time.monotonic()
        assert make_stage(STEPS[0], *load_run(done.path)).pending() == []
        say("what is left to do of validate, every byte of its records checked", (0, time.monotonic() - started))
    return 0


if __name__ == "__main__":
    sys.exit(main())
