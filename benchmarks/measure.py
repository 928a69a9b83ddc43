"""Compares two ways of doing the same thing, measured in alternation in one run, so that a busy machine favors neither.

>>> times = alternate({"ours": ours, "theirs": theirs}, rounds=7)
>>> times["ours"].per_second(1500)
4519.2
>>> figures = {"validation": compare(times, "ours", "theirs", work=1500, unit="images")}
>>> report("validation", figures, Path("validation.json"))

The figure worth quoting is the median of the ratios of neighboring rounds, with their range: the machine's other load
changes slowly compared with a round, so it cancels out.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Times:
    """Seconds of each round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return statistics.median(self.seconds)

    def per_second(self, work: float) -> float:
        """Units of work per second, by the median round."""
        return work / self.median


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our speed as a multiple of theirs, over the rounds."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two contenders took for the same work."""

    ours: str
    theirs: str
    speed_ratio: Ratio
    per_second: dict[str, float]  # contender → units of work per second
    seconds: dict[str, list[float]]  # contender → of each round
    rounds: int
    work: float  # units that one round does
    unit: str  # in the plural


def alternate(contenders: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, Times]:
    """Run the contenders in turns, every other round in reverse order: the first after a pause has an advantage.

    Args:
        contenders: each does the same amount of work when called.
        rounds: how often each is measured.
        warm_up: earlier rounds that do not count (caches, lazy imports).
    """
    names = list(contenders)
    times = {name: Times() for name in names}
    for number in range(-warm_up, rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            start = time.perf_counter()
            contenders[name]()
            seconds = time.perf_counter() - start
            if number >= 0:
                times[name].seconds.append(seconds)
    return times


def compare(times: Mapping[str, Times], ours: str, theirs: str, *, work: float, unit: str) -> Comparison:
    """Compare two of the contenders that `alternate` measured.

    Args:
        times: what `alternate` returned.
        ours, theirs: which two.
        work: units of work that one round does.
        unit: their name, in the plural.
    """
    ratios = [b / a for a, b in zip(times[ours].seconds, times[theirs].seconds, strict=True)]
    return Comparison(
        ours=ours,
        theirs=theirs,
        speed_ratio=Ratio(statistics.median(ratios), min(ratios), max(ratios)),
        per_second={name: times[name].per_second(work) for name in (ours, theirs)},
        seconds={name: times[name].seconds for name in (ours, theirs)},
        rounds=len(ratios),
        work=work,
        unit=unit,
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_at_end": os.getloadavg()[0],
    }


def in_words(comparison: Comparison) -> str:
    """One line about a comparison."""
    ratio, speed, unit = comparison.speed_ratio, comparison.per_second, comparison.unit
    ours, theirs = comparison.ours, comparison.theirs
    return (
        f"{ours}: {speed[ours]:,.1f} {unit}/s; {theirs}: {speed[theirs]:,.1f} {unit}/s; "
        f"{ratio.median:.2f} x ({ratio.lowest:.2f} to {ratio.highest:.2f} in {comparison.rounds} rounds)"
    )


def report(name: str, figures: Mapping[str, Any], out: Path | None) -> None:
    """Print the figures and write them as JSON.

    Args:
        name: of the benchmark.
        figures: comparisons and other figures by name.
        out: where to write; None prints only.
    """
    for key, value in figures.items():
        print(f"{key}: {in_words(value) if isinstance(value, Comparison) else value}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": name, "machine": machine(), **figures}
        out.write_text(json.dumps(result, indent=2, default=asdict) + "\n")
