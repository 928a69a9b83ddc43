"""Compares two ways of doing the same thing, measured in turns in one run, so that a busy machine is unfair to neither.

>>> result = alternate({"ours": ours, "theirs": theirs}, rounds=7)
>>> result["ours"].per_second(1500)
4519.2
>>> report("validation", compare(result, "ours", "theirs", work=1500, unit="images"), Path("validation.json"))

A figure worth quoting is the median of the ratios of neighboring turns, with their spread: what else the machine does
changes slowly against the length of a turn, so it cancels out.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Times:
    """Seconds of each round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the rounds, in seconds."""
        return statistics.median(self.seconds)

    def per_second(self, work: float) -> float:
        """Units of work in a second, by the median round."""
        return work / self.median


def alternate(contenders: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, Times]:
    """Run the contenders in turns; every other round in reverse order, since the first after a pause has it easier.

    Args:
        contenders: each does the same amount of work when called.
        rounds: how often each is measured.
        warm_up: rounds before that are run and not counted (caches, lazy imports).
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


def compare(times: Mapping[str, Times], ours: str, theirs: str, *, work: float, unit: str) -> dict[str, Any]:
    """Our speed as a multiple of theirs: median, lowest and highest of the rounds, and both speeds.

    Args:
        times: what `alternate` returned.
        ours, theirs: which two.
        work: units that one round works off.
        unit: what they are, in the plural.
    """
    ratios = [b / a for a, b in zip(times[ours].seconds, times[theirs].seconds, strict=True)]
    return {
        "ours": ours,
        "theirs": theirs,
        "speed_ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "per_second": {name: times[name].per_second(work) for name in (ours, theirs)},
        "seconds": {name: times[name].seconds for name in (ours, theirs)},
        "rounds": len(ratios),
        "work": work,
        "unit": unit,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_at_end": os.getloadavg()[0],
    }


def in_words(comparison: Mapping[str, Any]) -> str:
    """One line of a comparison."""
    ratio, speed = comparison["speed_ratio"], comparison["per_second"]
    ours, theirs, unit = comparison["ours"], comparison["theirs"], comparison["unit"]
    return (
        f"{ours}: {speed[ours]:,.1f} {unit}/s; {theirs}: {speed[theirs]:,.1f} {unit}/s; "
        f"{ratio['median']:.2f} x ({ratio['lowest']:.2f} to {ratio['highest']:.2f} in {comparison['rounds']} rounds)"
    )


def report(name: str, figures: Mapping[str, Any], out: Path | None) -> None:
    """Print every comparison among the figures, and write all of them as JSON.

    Args:
        name: of the benchmark.
        figures: one comparison, or several by name, with any other figures beside them.
        out: where to write; None prints only.
    """
    several = figures if "speed_ratio" not in figures else {name: figures}
    for key, value in several.items():
        if isinstance(value, Mapping) and "speed_ratio" in value:
            print(f"{key}: {in_words(value)}")
        else:
            print(f"{key}: {value}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"benchmark": name, "machine": machine(), **several}, indent=2) + "\n")
