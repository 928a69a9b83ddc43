"""Sends ``kill -9`` to launch.py and its tasks at random moments of every stage, until the run finishes anyway.

The moment is drawn uniformly over the lifetime of the stage's tasks in an undisturbed run. So imports, the work itself, the
final marker and the time between stages are all hit.
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

BETWEEN = "launch.py"  # the time when only launch.py runs
POLL_SECONDS = 0.01
GIVE_UP_SECONDS = 900.0
AGAIN_LATER, MOST_OUTAGES = "start again later", 20  # launches that end with these words, at most


@dataclass(slots=True)
class Kills:
    """The kills of a run."""

    by_stage: Counter[str] = field(default_factory=Counter)
    by_victim: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    moments: list[float] = field(default_factory=list)  # Unix times of all kills

    def add(self, other: Kills) -> None:
        """Add the kills of another run."""
        self.by_stage.update(other.by_stage)
        self.by_victim.update(other.by_victim)
        self.launches += other.launches
        self.moments += other.moments


def tasks_of(launcher: int) -> dict[int, str]:
    """The running tasks of a launch.py: process ID → stage."""
    found: dict[int, str] = {}
    with suppress(OSError):
        for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"jobs.backends.task"]:
                    found[int(pid)] = words[4].decode().partition(":")[0]
    return found


def undisturbed(command: Sequence[str], said: Path) -> dict[str, float]:
    """Run a command undisturbed; return the lifetime of each stage's longest task, and of launch.py before its first task."""
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
    """Rerun a command until it finishes, killing in every stage as often as ``quota`` says.

    A kill that comes after its task has finished is drawn again while the stage still has work. Kills left over when a stage
    finishes are dropped.

    Raises:
        AssertionError: the command failed by itself or never finished.
    """
    kills = Kills()
    left = Counter(quota)
    deadline, again_later = time.monotonic() + give_up, 0
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
                # launch.py was killed itself, or a task more often than launch.py restarts it. Or, by bad luck, nothing that
                # a task asked was answered: it says to start again later.
                text = said.read_text()
                again_later += AGAIN_LATER in text
                expected = process.returncode == -signal.SIGKILL or "killed (signal 9)" in text or AGAIN_LATER in text
                assert expected and again_later <= MOST_OUTAGES, text
                process = _start(command, said)
                kills.launches += 1
    finally:
        process.kill()
        process.wait()
    raise AssertionError(f"not finished after {give_up:.0f} s and {kills}")


def _kill_before_tasks(process: subprocess.Popen[bytes], left: Counter[str], delay: float, kills: Kills) -> None:
    """Kill launch.py after a delay, unless it has started tasks by then."""
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
    """Wait for the next task of a stage that has kills left; kill that task, launch.py, or all processes."""
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
            return  # too late: the task has finished
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
