"""Compares a pipeline under ``kill -9`` with an undisturbed run: ``python -m tests.chaos --kills 200 --seed 1``.

::

    stage        kills  of them a task / launch.py / all at once
    ...
    200 kills in 9 runs: 0 records lost, 0 changed; 0 recorded twice; 13 replies paid for twice
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.demo.catalogue import render
from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import STAGES
from tests.chaos.kills import BETWEEN, Kills, disturbed, undisturbed
from tests.chaos.outcome import lost, records, repeated
from tests.conftest import launch_args, launch_command, write_config

KILLS_PER_RUN = 3  # per stage: enough to hit a resumed stage, few enough to need several runs
SHARDS = CONCURRENCY = 2


@dataclass(slots=True)
class Tally:
    """Totals over all runs."""

    runs: int = 0
    kills: Kills = field(default_factory=Kills)
    records: int = 0  # compared
    lost: list[str] = field(default_factory=list)
    repeated: int = 0  # written twice
    paid_twice: int = 0  # replies that a kill lost in flight

    def paid_twice_at_most(self) -> int:
        """Upper bound: the requests that can be in flight at each kill in a stage that pays for them."""
        return (self.kills.by_stage["generate"] + self.kills.by_stage["verify"]) * SHARDS * CONCURRENCY


def try_kills(folder: Path, kills: int, seed: int, stages: Sequence[str] = STAGES, products: int = 40) -> Tally:
    """Kill until ``kills`` is reached, starting a new run whenever one finishes, and compare every run.

    Args:
        folder: where the catalog, the configuration and the runs are written.
        kills: total number, spread evenly over the stages and the time between them.
        seed: for the moments and targets.
        stages: the stages to run.
        products: size of the catalog.
    """
    os.environ.setdefault("GEMINI_API_KEY", "not-a-key")
    rng = random.Random(seed)
    catalogue = folder / "catalogue"
    render(catalogue, products=products, seed=3)
    tally = Tally()
    with StandIn(catalogue / "facts.jsonl", StandInOptions(latency=0.1)) as server:
        config = write_config(
            folder / "chaos.yaml",
            catalogue,
            generate={"endpoint": server.url, "concurrency": CONCURRENCY, "shards": SHARDS},
            verify={"enabled": True},
        )

        def command(run: Path) -> list[str]:
            return launch_command(*launch_args(config, run, "--stages", ",".join(stages)))

        said = folder / "launch.txt"
        reference = folder / "undisturbed"
        lives = undisturbed(command(reference), said)
        count = sum(map(len, records(reference).values()))
        while tally.kills.by_stage.total() < kills:
            run = folder / f"run-{tally.runs}"
            asked = len(server.entries)
            tally.kills.add(disturbed(command(run), said, _quota(tally.kills, kills, stages, rng), lives, rng))
            tally.runs += 1
            tally.records += count
            tally.lost += lost(reference, run)
            tally.repeated += repeated(run)
            answered = Counter(e.get("quiz") or e["image"] for e in server.entries[asked:] if e["outcome"] == "ok")
            tally.paid_twice += sum(n - 1 for n in answered.values())
    return tally


def _quota(done: Kills, kills: int, stages: Sequence[str], rng: random.Random) -> Mapping[str, int]:
    """Kills per stage for the next run: the rest of an even share, at most `KILLS_PER_RUN`."""
    places = [*stages, BETWEEN]
    share = math.ceil(kills / len(places))
    quota = {place: max(0, min(KILLS_PER_RUN, share - done.by_stage[place])) for place in places}
    over = sum(quota.values()) - (kills - done.by_stage.total())
    for place in rng.sample(places, len(places)):
        taken = min(max(over, 0), quota[place])
        quota[place] -= taken
        over -= taken
    return quota


def show(tally: Tally, seconds: float, stages: Sequence[str] = STAGES) -> None:
    """Print the totals."""
    print("stage       kills")
    for stage in (BETWEEN, *stages):
        print(f"{stage:<10}{tally.kills.by_stage[stage]:>7,}")
    victims = ", ".join(f"{victim} {count:,}" for victim, count in sorted(tally.kills.by_victim.items()))
    print(f"victims: {victims}")
    print(
        f"{tally.kills.by_stage.total():,} kills in {tally.runs} runs and {tally.kills.launches:,} launches "
        f"({seconds:.0f} s): of {tally.records:,} records {len(tally.lost)} lost or changed, {tally.repeated} recorded "
        f"twice, {tally.paid_twice} replies paid for twice (at most {tally.paid_twice_at_most()} could be)"
    )
    for line in tally.lost[:20]:
        print(f"  lost or changed: {line}")


def main() -> int:
    """Run from the command line; return 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stages", default=",".join(STAGES), help="only these, separated by commas")
    arguments = parser.parse_args()
    stages = arguments.stages.split(",")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = try_kills(Path(folder), arguments.kills, arguments.seed, stages)
    show(tally, time.monotonic() - started, stages)
    return 1 if tally.lost or tally.repeated or tally.paid_twice > tally.paid_twice_at_most() else 0


if __name__ == "__main__":
    sys.exit(main())
