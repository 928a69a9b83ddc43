"""Runs generate under all network faults at once and ``kill -9``: ``python -m tests.chaos.generation --products 2000``.

The server's own log shows what was paid for, the records show what was kept::

    2,000 products = 1,140 done + 860 failed + 0 remaining; 30 kills (...) in 20 launches, 801 s
    ...
    3,538 paid replies, 3,524 of them on disk; 2 good ones paid for twice (242 were on their way at a kill or ...)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_prep.demo.catalogue import render
from data_prep.files import read_jsonl
from data_prep.records import Product
from data_prep.stand_in import StandIn, StandInOptions, handler
from data_prep.stand_in.faults import CONTENT
from jobs.run.layout import RunDir
from jobs.shards.journal import ReadReport
from jobs.shards.marker import ShardMarker
from jobs.shards.store import read_records
from tests.chaos.kills import Kills, disturbed
from tests.conftest import launch, launch_args, launch_command, output, write_config

# Nine in ten requests fail; the rest to 1 is the share of good replies. Invalid replies are one kind of fault in five variants.
# Each request draws again, so retries eventually succeed.
FAULTS = {
    **dict.fromkeys(("status_429", "status_500", "status_503", "break_off", "hang", "html"), 0.1),
    **dict.fromkeys(("four_pairs", "six_pairs", "two_words", "no_category", "truncated"), 0.02),
    **dict.fromkeys(("max_tokens", "safety"), 0.1),
}
PAID = {"ok", *CONTENT}  # outcomes in the log that are billed
SHARDS, CONCURRENCY = 4, 8
# Long enough that no good reply times out on a loaded machine: it would be paid for twice without any kill.
TIMEOUT_SECONDS, HANG_SECONDS = 3.0, 6.0


@dataclass(slots=True)
class Tally:
    """Totals of one run, from its records and the server's log."""

    products: int
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    remaining: int = 0
    damaged: int = 0
    kills: Kills = field(default_factory=Kills)
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)  # of requests, according to the server's log
    good_twice: int = 0  # good replies for products that already had one
    paid: int = 0
    stored: int = 0  # replies on disk
    in_flight: int = 0  # paid replies in flight at a kill, or sent within the second before it
    untrue: list[str] = field(default_factory=list)  # records that the server's log contradicts

    def problems(self) -> list[str]:
        """Broken guarantees; empty if there are none."""
        found = [f"the log contradicts the records: {line}" for line in self.untrue]
        if self.done + self.failed.total() != self.products or self.remaining:
            found.append(
                f"{self.products} products = {self.done} done + {self.failed.total()} failed + {self.remaining}"
            )
        if self.good_twice > self.in_flight:
            found.append(f"{self.good_twice} good replies were paid for twice, {self.in_flight} could be")
        if self.paid - self.stored > self.in_flight:
            found.append(f"{self.paid - self.stored} paid replies are not on disk, {self.in_flight} could be")
        if self.damaged:
            found.append(f"{self.damaged} damaged records")
        return found


def try_generation(folder: Path, products: int, kills: int, seed: int, generator: str) -> Tally:
    """Run generate under all faults and kills until it finishes, then compare its records with the server's log.

    Args:
        folder: where the catalog, the configuration and the run are written.
        products: how many; products with unreadable images do not count.
        kills: how many processes to kill.
        seed: for faults, moments and targets.
        generator: which client to use.
    """
    os.environ.setdefault("GEMINI_API_KEY", "not-a-key")
    catalogue, run_dir, said = folder / "catalogue", folder / "run", folder / "launch.txt"
    render(catalogue, products=products, seed=3)
    with (
        pytest.MonkeyPatch.context() as patch,
        StandIn(
            catalogue / "facts.jsonl", StandInOptions(latency=0.05, faults=FAULTS, seed=seed, retry_delay=0.1)
        ) as endpoint,
    ):
        patch.setattr(handler, "HANG_SECONDS", HANG_SECONDS)
        config = write_config(
            folder / "chaos.yaml",
            catalogue,
            generate={
                "generator": generator,
                "endpoint": endpoint.url,
                "timeout": TIMEOUT_SECONDS,
                "concurrency": CONCURRENCY,
                "shards": SHARDS,
                "max_asks": 3,
                "max_retries": 2,  # retry the product in the next pass rather than after minutes
                "max_tries": 5,
                "min_usable": 0,  # most replies are spoilt on purpose
            },
        )
        options = launch_args(config, run_dir, "--workers", str(SHARDS))
        first = launch(*options, "--stages", "prepare,validate")
        assert first.returncode == 0, output(first)
        # The task lifetime from which kill moments are drawn: much shorter than the work, so that no kill comes too late.
        lives = {"generate": 4 + max(4.0, products / kills / 8)}
        started = time.monotonic()
        command = launch_command(*options, "--stages", "generate")
        done = disturbed(command, said, {"generate": kills}, lives, random.Random(seed), give_up=3600.0)
        tally = compare(RunDir(run_dir), catalogue, endpoint.entries, done)
        tally.seconds = time.monotonic() - started
    return tally


def compare(run: RunDir, catalogue: Path, log: list[dict[str, Any]], kills: Kills) -> Tally:
    """Compare the records with what the server sent."""
    damage = ReadReport()
    readable = {record.key for record in read_records(run.store("validate"), damage) if record.ok}
    # The server identifies products by their image alone, and several can share one.
    images: dict[str, str] = {}
    for product in read_jsonl(run.products, Product):
        if product.item_id in readable:
            path = catalogue / "images" / "small" / product.image_path
            images[product.item_id] = hashlib.sha256(path.read_bytes()).hexdigest()
    tally = Tally(products=len(images), kills=kills)
    store = run.store("generate")
    for shard in range(SHARDS):
        marker = ShardMarker.read(store, shard)
        assert marker is not None, f"shard {shard} has no marker"
        tally.done += marker.done
        tally.remaining += marker.items - marker.done - marker.failed
        tally.failed.update(marker.reasons)
    answered = {kind: Counter(e["image"] for e in log if e["outcome"] == kind) for kind in PAID}
    stored: Counter[str] = Counter()
    for record in read_records(store, damage):
        if record.value:
            tally.stored += 1
            stored[images[record.key]] += 1
    paid = sum(answered.values(), Counter())
    tally.untrue = [f"{image}: {n} stored, {paid[image]} sent" for image, n in stored.items() if n > paid[image]]
    sharing = Counter(images.values())
    tally.good_twice = sum(max(0, count - sharing[image]) for image, count in answered["ok"].items())
    tally.in_flight = sum(
        any(entry["at"] <= moment + 0.5 and entry["answered"] >= moment - 1.0 for moment in kills.moments)
        for entry in log
        if entry["outcome"] in PAID
    )
    tally.outcomes = Counter(entry["outcome"] for entry in log)
    tally.paid = paid.total()
    tally.damaged = len(damage.broken)
    return tally


def show(tally: Tally) -> None:
    """Print the totals."""
    victims = ", ".join(f"{victim} {count:,}" for victim, count in sorted(tally.kills.by_victim.items()))
    print(
        f"{tally.products:,} products = {tally.done:,} done + {tally.failed.total():,} failed + {tally.remaining:,} "
        f"remaining; {tally.kills.by_victim.total():,} kills ({victims}) in {tally.kills.launches:,} launches, "
        f"{tally.seconds:.0f} s"
    )
    print(f"failed: {', '.join(f'{reason} {count:,}' for reason, count in tally.failed.most_common())}")
    print(
        f"{tally.outcomes.total():,} requests: "
        + ", ".join(f"{outcome} {count:,}" for outcome, count in tally.outcomes.most_common())
    )
    print(
        f"{tally.paid:,} paid replies, {tally.stored:,} of them on disk; {tally.good_twice} good ones paid for twice "
        f"({tally.in_flight} were on their way at a kill or sent in the second before it)"
    )
    for line in tally.problems():
        print(f"  broken guarantee: {line}")


def main() -> int:
    """Run from the command line; return 1 if a guarantee is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.generation", description=__doc__.split("\n")[0])
    parser.add_argument("--products", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--generator", default="google_generativeai")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = try_generation(Path(folder), options.products, options.kills, options.seed, options.generator)
    show(tally)
    return 1 if tally.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
