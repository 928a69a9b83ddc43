"""What each attempt of each task used, by its own account: one small file an attempt, whatever became of it::

    ledger/tasks/train-blip/20260102T030405-9f2c0d1e2f3a.json
    {"host": "gpu3", "shard": null, "rank": 0, "started_at": 1764073423.2, "ended": true, "seconds": 61.2, "cores": 8,
     "gpus": 1.0, "cpu_seconds": 118.4, "max_rss_bytes": 5100000000}

`jobs.backends.meter` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.files import read_json
from data_prep.records import from_dict
from jobs.run.layout import RunDir, Step


@dataclass(slots=True)
class Attempt:
    """One process that worked on a task; a training has one a rank."""

    host: str
    shard: int | None
    rank: int
    started_at: float  # Unix time
    cores: int  # that it may run on
    gpus: float  # that it holds, whether it computes on them or not
    ended: bool = False  # by itself, done or not; else it is running, or was killed
    seconds: float = 0.0  # since its start
    cpu_seconds: float = 0.0  # on all cores, with the processes that it started and that have ended
    max_rss_bytes: int = 0  # the most memory of one process


@dataclass(frozen=True, slots=True)
class Used:
    """What all attempts of a step used: also those that failed, were interrupted or killed, or whose results are deleted."""

    attempts: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    max_rss_bytes: int = 0

    def __add__(self, one: Attempt) -> Used:
        return Used(
            self.attempts + 1,
            self.gpu_hours + one.gpus * one.seconds / 3600,
            self.cpu_hours + one.cpu_seconds / 3600,
            max(self.max_rss_bytes, one.max_rss_bytes),
        )


def used_by(run: RunDir, step: Step) -> Used:
    """Sum up the attempts of a step."""
    total = Used()
    for path in run.attempts(step).glob("*.json"):
        if fields := read_json(path):
            total += from_dict(Attempt, fields)
    return total
