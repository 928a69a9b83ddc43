"""A bounded pool of processes on this machine: what SLURM is on a cluster, for tasks that are plain commands.

::

    tasks = [Task("validate[0]", ["python", "-m", "jobs.backends.task", "runs/demo", "validate", "--shard", "0"], log, {})]
    for result in run_tasks(tasks, workers=4, stop=lambda: False):
        print(result.task.name, result.returncode)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from slurm.process import REQUEUE, die_with_parent

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """A command to run once."""

    name: str
    command: Sequence[str]
    log: Path  # its output is appended here
    env: Mapping[str, str] = field(default_factory=dict)  # added to this process's environment


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """How a task ended."""

    task: Task
    returncode: int  # as in subprocess: negative for a signal; `REQUEUE` if interrupted or never started


@dataclass(slots=True)
class _Running:
    number: int
    process: subprocess.Popen[bytes]
    gpu: str | None
    asked_to_stop: float | None = None  # when, on the monotonic clock


def run_tasks(
    tasks: Sequence[Task],
    workers: int,
    stop: Callable[[], bool] = lambda: False,
    on_tick: Callable[[], None] = lambda: None,
    *,
    gpus: Sequence[str] = (),
    grace: float = 30.0,
) -> list[FinishedTask]:
    """Run tasks, at most `workers` at a time, and wait for all of them.

    Call it in the main thread: the kernel kills a task when the thread that started it ends (`die_with_parent`).

    Args:
        tasks: what to run; started in this order.
        workers: maximum number of running tasks.
        stop: once true, no task is started, and running ones get TERM and after `grace` KILL.
        on_tick: called a few times a second.
        gpus: devices as CUDA_VISIBLE_DEVICES names them. If given, each running task has one of them to itself.
        grace: seconds.

    Returns:
        One result per task, in the order of `tasks`.
    """
    assert workers >= 1, workers
    waiting = deque(range(len(tasks)))
    free: deque[str | None] = deque(gpus[:workers]) if gpus else deque([None] * workers)  # one entry per idle worker
    running: list[_Running] = []
    codes = [REQUEUE] * len(tasks)
    try:
        while running or (waiting and not stop()):
            while waiting and free and not stop():
                number = waiting.popleft()
                gpu = free.popleft()
                running.append(_Running(number, _start(tasks[number], gpu), gpu))
            on_tick()
            time.sleep(POLL_SECONDS)
            for one in list(running):
                code = one.process.poll()
                if code is None:
                    if stop():
                        _stop(one, grace)
                    continue
                running.remove(one)
                free.append(one.gpu)
                _signal(one, signal.SIGKILL)  # its children may outlive it, in the same process group
                # A task that TERM ends had not installed its handlers yet, so it was not in the middle of anything.
                early = one.asked_to_stop is not None and code == -signal.SIGTERM
                codes[one.number] = REQUEUE if early else code
    finally:
        for one in running:  # only if an exception (a second Ctrl-C) ended the loop
            _signal(one, signal.SIGKILL)
            one.process.wait()
    return [FinishedTask(task, code) for task, code in zip(tasks, codes, strict=True)]


def _start(task: Task, gpu: str | None) -> subprocess.Popen[bytes]:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **task.env}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with task.log.open("ab") as log:
        return subprocess.Popen(
            die_with_parent(task.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # A terminal sends Ctrl-C to its whole foreground group. In a group of its own a task does not get it: only the
            # launcher does, and then asks the tasks to stop. The group also makes the task's children reachable.
            process_group=0,
        )


def _stop(one: _Running, grace: float) -> None:
    """Ask a task to stop; once `grace` is over, kill it."""
    now = time.monotonic()
    if one.asked_to_stop is None:
        one.asked_to_stop = now
        _signal(one, signal.SIGTERM)
    elif now - one.asked_to_stop > grace:
        _signal(one, signal.SIGKILL)


def _signal(one: _Running, number: signal.Signals) -> None:
    """Signal a task and the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(one.process.pid, number)


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them, found without loading torch; empty where there is none."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
