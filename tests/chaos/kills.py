"""``kill -9`` of launch.py and of its tasks at random moments of every stage, until the run is finished all the same.

The moment is drawn evenly over the life that a task of the stage had in an undisturbed run, from its first instruction on; so
imports, the work itself, the marker at the end and the time between stages are all hit.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT, environment

BETWEEN = "launch.py"  # the time in which launch.py runs and no task does
POLL_SECONDS = 0.01
GIVE_UP_SECONDS = 900.0


@dataclass(slots=True)
class Kills:
    """What was done to a run."""

    by_stage: Counter[str] = field(default_factory=Counter)
    by_victim: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    moments: list[float] = field(default_factory=list)  # of all kills, in seconds of the epoch

    def add(self, other: Kills) -> None:
        """Sum over runs."""
        self.by_stage.update(other.by_stage)
        self.by_victim.update(other.by_victim)
        self.launches += other.launches
        self.moments += other.moments


def tasks_of(launcher: int) -> dict[int, str]:
    """The living tasks of a launch.py: process id → stage."""
    found: dict[int, str] = {}
    with suppress(OSError):
        for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"jobs.backends.task"]:
                    found[int(pid)] = words[4].decode().partition(":")[0]
    return found


def undisturbed(command: Sequence[str], said: Path) -> dict[str, float]:
    """Run a command to its end; how long the longest task of each stage lived, and launch.py before its first task."""
    process = _start(command, said)
    began = time.monotonic()
    first: dict[int, tuple[str, float]] = {}
    lives: dict[str, float] = defaultdict(float)
    while process.poll() is None:
        now = time.monotonic()
        for pid, stage in tasks_of(process.pid).items():
            lives.setdefault(BETWEEN, now - began)
            _, born = first.setdefault(pid, (stage, now))
            lives[stage] = max(lives[stage], now - born)
        time.sleep(POLL_SECONDS)
    assert process.returncode == 0, f"the undisturbed run failed: {said.read_text()}"
    return dict(lives)


def disturbed(
    command: Sequence[str],
    said: Path,
    quota: Mapping[str, int],
    lives: Mapping[str, float],
    rng: random.Random,
    give_up: float = GIVE_UP_SECONDS,
) -> Kills:
    """Start a command again and again until it ends by itself, killing in every stage as often as ``quota`` says.

    A kill that comes too late, because the stage was done, is drawn again as long as the stage is worked on; what a stage
    did not use of its quota when it is done is not made up for.

    Raises:
        AssertionError: it failed by itself, or did not end.
    """
    kills = Kills()
    left = Counter(quota)
    deadline = time.monotonic() + give_up
    process = _start(command, said)
    kills.launches += 1
    try:
        while time.monotonic() < deadline:
            if left[BETWEEN] > 0 and rng.random() < 0.5:
                _kill_before_tasks(process, left, rng.uniform(0, lives[BETWEEN]), kills)
            else:
                _kill_in_a_task(process, left, lives, rng, kills)
            if process.poll() == 0:
                return kills
            if process.returncode is not None:
                # It was killed itself, or a task was killed more often than launch.py starts one again.
                text = said.read_text()
                assert process.returncode == -signal.SIGKILL or "killed (signal 9)" in text, text
                process = _start(command, said)
                kills.launches += 1
    finally:
        process.kill()
        process.wait()
    raise AssertionError(f"not finished after {give_up:.0f} s and {kills}")


def _kill_before_tasks(process: subprocess.Popen[bytes], left: Counter[str], delay: float, kills: Kills) -> None:
    """Kill launch.py so long after its start, unless it has tasks by then."""
    end = time.monotonic() + delay
    while time.monotonic() < end and process.poll() is None:
        time.sleep(POLL_SECONDS)
    if process.poll() is None and not tasks_of(process.pid):
        process.kill()
        process.wait()
        kills.moments.append(time.time())
        kills.by_stage[BETWEEN] += 1
        kills.by_victim["launch.py"] += 1
        left[BETWEEN] -= 1


def _kill_in_a_task(
    process: subprocess.Popen[bytes],
    left: Counter[str],
    lives: Mapping[str, float],
    rng: random.Random,
    kills: Kills,
) -> None:
    """Wait for the next task of a stage that has kills left, and kill it, launch.py, or all of them."""
    while process.poll() is None:
        wanted = {pid: stage for pid, stage in tasks_of(process.pid).items() if left[stage] > 0}
        if not wanted:
            time.sleep(POLL_SECONDS)
            continue
        pid, stage = rng.choice(sorted(wanted.items()))
        moment = time.monotonic() + rng.uniform(0, lives[stage])
        while time.monotonic() < moment and process.poll() is None and pid in tasks_of(process.pid):
            time.sleep(POLL_SECONDS)
        alive = tasks_of(process.pid)
        if pid not in alive:
            return  # too late: it was done
        victim = rng.choices(("a task", "launch.py", "all at once"), (5, 3, 2))[0]
        victims = {"a task": [pid], "launch.py": [process.pid], "all at once": [process.pid, *alive]}[victim]
        if sum(_kill(one) for one in victims):
            if process.pid in victims:
                process.wait()
            kills.moments.append(time.time())
            kills.by_stage[stage] += 1
            kills.by_victim[victim] += 1
            left[stage] -= 1
        return


def _start(command: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
