"""One quota for four tasks at once: how much of it they use, and that they never exceed it, by the server's own log.

``python -m benchmarks.quota --seconds 180 --out quota.json`` starts the stand-in for Gemini, which takes two seconds for a reply,
and four processes that share nothing but the folder of the quota. The bar is 0.95 of what is possible::

    min(quota, tasks * concurrency / latency)

Replies are counted over ``--seconds`` of steady state. One at its edge counts with the share of its two seconds that lies within,
as replies come in waves. The start is left out: the time until the last of the four has sent its first request (a process
imports for seconds), and three latencies more, in which the first requests of all tasks are answered together. So is the end, until
the tasks have noticed the stop. The quota is checked over the whole log, start and end included: the most requests in any 60
seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from data_prep.generate import workers
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import Product

TASKS, LATENCY, IMAGES = 4, 2.0, 64
BAR = 0.95


@dataclass(frozen=True)
class Case:
    """A quota in requests a minute, and how many requests each task may have in flight."""

    per_minute: int
    concurrency: int

    def possible(self) -> float:
        """The most replies a second."""
        return min(self.per_minute / 60, TASKS * self.concurrency / LATENCY)


CASES = {
    "bound by the quota": Case(per_minute=600, concurrency=8),
    "bound by the requests in flight": Case(per_minute=2000, concurrency=4),
    # The hardest: a slot that passes while all requests are in flight is lost for good.
    "bound by both alike": Case(per_minute=600, concurrency=5),
}


def make_shop(folder: Path) -> None:
    """Write images (any bytes will do) and the stand-in's answers about them."""
    lines = []
    for i in range(IMAGES):
        image = b"\xff\xd8\xff\xe0" + i.to_bytes(2) + bytes(10_000)  # as large as a small product photo
        (folder / f"{i}.jpg").write_bytes(image)
        qas = [{"question": f"What is number {n}?", "answer": "red", "category": "easy"} for n in range(5)]
        lines.append(json.dumps({"image_sha256": hashlib.sha256(image).hexdigest(), "qas": qas}))
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")


def task(folder: str, url: str, number: int, case: Case, over: Event) -> None:
    """One task of an array: asks until told to stop. Its key is its number, which the server's log shows with each request."""
    os.environ["GEMINI_API_KEY"] = f"key-of-task-{number:04}"

    failures: list[str] = []

    def record(outcome: Ok | Failed, *, durable: bool = False) -> None:
        if isinstance(outcome, Failed):
            failures.append(f"{outcome.reason} {outcome.detail}")

    def todos() -> Iterator[Todo[Product]]:
        for i in itertools.count():
            image = f"{(i * TASKS + number) % IMAGES}.jpg"
            yield Todo(Product(f"T{number}-{i}", image, image, "mug", "MUG", "red", []), record)

    settings = GenerateSettings.model_validate(
        {
            "generator": "google_genai",
            "endpoint": url,
            "concurrency": case.concurrency,
            "quota": {"requests_per_minute": case.per_minute},
            "max_retries": 0,
            "max_asks": 1,
        }
    )
    workers.generate_all(
        todos(),
        image_root=Path(folder),
        settings=settings,
        ledger=Path(folder) / "ledger",
        quota_folder=Path(folder) / "quota",
        stopping=over.is_set,
    )
    if failures:
        sys.exit("\n".join(failures[:5]))


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Run one case; its figures by the server's log.

    Raises:
        RuntimeError: a task failed, or got no reply for a minute.
    """
    with tempfile.TemporaryDirectory(prefix="quota-") as name:
        folder, log = Path(name), Path(name) / "log.jsonl"
        make_shop(folder)
        command = [sys.executable, "-m", "data_prep.stand_in", "--answers", str(folder / "answers.jsonl")]
        command += ["--latency", str(LATENCY), "--log", str(log)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            spawn = multiprocessing.get_context("spawn")
            over = spawn.Event()
            tasks = [spawn.Process(target=task, args=(name, url, number, case, over)) for number in range(TASKS)]
            try:
                for process in tasks:
                    process.start()
                begin = _all_asking(log) + 3 * LATENCY
                time.sleep(max(0.0, begin + seconds + LATENCY - time.time()))
            finally:
                over.set()
                for process in tasks:
                    process.join()
                server.terminate()
        if any(process.exitcode for process in tasks):
            raise RuntimeError("a task failed: see above")
        return figures(_entries(log), case, begin, seconds)


def figures(entries: list[dict[str, Any]], case: Case, begin: float, seconds: float) -> dict[str, Any]:
    """The figures of a server's log.

    Args:
        entries: its lines.
        case: what was run.
        begin: of the steady state, seconds since the epoch.
        seconds: its length.
    """
    good = [(entry["at"], entry["answered"]) for entry in entries if entry["outcome"] == "ok"]
    end = begin + seconds
    counted = sum(max(0.0, min(end, later) - max(begin, at)) / (later - at) for at, later in good)
    arrived = sorted(entry["at"] for entry in entries)
    most = max(bisect_left(arrived, at + 60) - i for i, at in enumerate(arrived))
    share = counted / seconds / case.possible()
    return {
        "tasks": TASKS,
        "requests_per_minute": case.per_minute,
        "in_flight_at_most": TASKS * case.concurrency,
        "latency_seconds": LATENCY,
        "possible_per_second": case.possible(),
        "replies_per_second": counted / seconds,
        "share_of_possible": share,
        "most_requests_in_any_60_s": most,
        "over_quota": most > case.per_minute,
        "requests": len(entries),
        "not_answered_well": len(entries) - len(good),
        "steady_seconds": seconds,
        "left_out_at_start_seconds": begin - arrived[0],
    }


def _all_asking(log: Path) -> float:
    """When the last task sent its first request."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        first: dict[str, float] = {}
        for entry in _entries(log):
            first.setdefault(entry["key"], entry["at"])
        if len(first) == TASKS:
            return max(first.values())
        time.sleep(0.5)
    raise RuntimeError("not every task had a reply within a minute")


def _entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def main() -> int:
    """Measure all cases, print and write the figures; 1 where the bar is missed or the quota was exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quota", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="of steady state, in each case")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    found = {name: measure(case, options.seconds) for name, case in CASES.items()}
    for name, case in found.items():
        print(
            f"{name}: {case['replies_per_second']:.2f} of {case['possible_per_second']:.2f} replies a second, "
            f"{case['share_of_possible']:.1%}; at most {case['most_requests_in_any_60_s']} of "
            f"{case['requests_per_minute']} requests in any 60 s"
        )
    report("quota", {**found, "bar": BAR}, options.out)
    missed = [name for name, case in found.items() if case["share_of_possible"] < BAR]
    passed = [name for name, case in found.items() if case["over_quota"]]
    print(f"bar missed: {missed or 'nowhere'}; quota exceeded: {passed or 'nowhere'}")
    return 1 if missed or passed else 0


if __name__ == "__main__":
    sys.exit(main())
