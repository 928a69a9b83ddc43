"""A bounded pool of processes on this machine: what SLURM is to a cluster, for tasks that are plain commands.

::

    tasks = [Task("validate[0]", ["python", "-m", "jobs.backends.task", "runs/demo", "validate", "--shard", "0"], log, {})]
    for result in run_tasks(tasks, workers=4, stop=lambda: False):
        print(result.task.name, result.returncode)

Time limits and signals are as on the cluster: USR2, a grace time, then KILL; a task that ends with `REQUEUE` after its time
limit is started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

REQUEUE = 75  # a task's exit code for "asked to stop before the end; start me again"
POLL_SECONDS = 0.05

# Run by the child before it becomes the task. The kernel then kills the task when the thread that started it ends, be it
# by kill -9: nothing runs on unseen. Not a preexec_fn: that is unsafe where the parent has threads (progress bars do).
# 1 is PR_SET_PDEATHSIG. The comparison catches a parent that died before the call.
_BECOME = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "try: os.execvp(sys.argv[2], sys.argv[2:])\n"
    "except OSError as error: sys.exit(f'error: cannot start {sys.argv[2]}: {error.strerror}')\n"
)


@dataclass(frozen=True, slots=True)
class Task:
    """A command to run once."""

    name: str
    command: Sequence[str]
    log: Path  # takes what it prints, appended
    env: Mapping[str, str] = field(default_factory=dict)  # on top of this process's environment
    time_limit: float | None = None  # seconds of one attempt


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended."""

    task: Task
    returncode: int  # as in subprocess: negative for a signal; `REQUEUE` for interrupted
    attempts: int  # 0: it was never started, because a stop came first
    seconds: float  # over all attempts
    timed_out: bool = False  # the last attempt was ended by its time limit


@dataclass(slots=True)
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    gpu: str | None
    attempt: int
    started: float
    spent: float  # seconds of earlier attempts
    asked: float | None = None  # when it was asked to stop
    timed_out: bool = False


def run_tasks(
    tasks: Sequence[Task],
    workers: int,
    stop: Callable[[], bool] = lambda: False,
    on_tick: Callable[[], None] = lambda: None,
    *,
    gpus: Sequence[str] = (),
    grace: float = 30.0,
    requeues: int = 20,
) -> list[TaskResult]:
    """Run tasks, never more than `workers` at once, and wait for all of them. Call it in the main thread.

    Args:
        tasks: what to run; started in this order.
        workers: processes at once.
        stop: once true, nothing more is started and what runs gets TERM, a grace time, then KILL.
        on_tick: called a few times a second.
        gpus: devices as CUDA_VISIBLE_DEVICES names them. If given, each task has one of them for itself.
        grace: seconds from the request to stop to the kill.
        requeues: how often one task may be started again after its time limit.

    Returns:
        One result a task, in the order of `tasks`. A task that a stop kept from starting has `REQUEUE` and no attempts.
    """
    assert workers >= 1, workers
    waiting = deque((task, 1, 0.0) for task in tasks)
    free = deque(gpus)
    running: list[_Running] = []
    results: dict[int, TaskResult] = {}
    places = min(workers, len(gpus)) if gpus else workers
    try:
        while running or (waiting and not stop()):
            while waiting and len(running) < places and not stop():
                task, attempt, spent = waiting.popleft()
                running.append(_start(task, attempt, spent, free.popleft() if gpus else None))
            on_tick()
            time.sleep(POLL_SECONDS)
            for one in list(running):
                code = one.process.poll()
                if code is None:
                    _press(one, stopping=stop(), grace=grace)
                    continue
                running.remove(one)
                if one.gpu is not None:
                    free.append(one.gpu)
                _signal(one, signal.SIGKILL)  # whatever it left behind in its process group
                seconds = one.spent + time.monotonic() - one.started
                if one.asked is not None and code in (-signal.SIGTERM, -signal.SIGUSR2):
                    code = REQUEUE  # asked before it listened for signals: it had nothing in hand
                if code == REQUEUE and one.timed_out and one.attempt <= requeues and not stop():
                    waiting.append((one.task, one.attempt + 1, seconds))
                else:
                    results[id(one.task)] = TaskResult(one.task, code, one.attempt, seconds, one.timed_out)
    finally:
        for one in running:  # only where an exception (a second Ctrl-C) leaves the loop
            _signal(one, signal.SIGKILL)
            one.process.wait()
    for task, attempt, spent in waiting:
        results[id(task)] = TaskResult(task, REQUEUE, attempt - 1, spent)
    return [results[id(task)] for task in tasks]


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """A command that becomes the given one and is killed when this process ends, however it ends."""
    return [sys.executable, "-ISc", _BECOME, str(os.getpid()), *command]


def _start(task: Task, attempt: int, spent: float, gpu: str | None) -> _Running:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **task.env}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with task.log.open("ab") as log:
        process = subprocess.Popen(
            dying_with_parent(task.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C in the terminal reaches the launcher alone, which then asks the tasks to stop
        )
    return _Running(task, process, gpu, attempt, time.monotonic(), spent)


def _press(one: _Running, *, stopping: bool, grace: float) -> None:
    """Ask a task to stop where it is time for that; kill it where it was asked long enough ago."""
    now = time.monotonic()
    if one.asked is not None:
        if now - one.asked > grace:
            _signal(one, signal.SIGKILL)
    elif stopping:
        one.asked = now
        _signal(one, signal.SIGTERM)
    elif one.task.time_limit is not None and now - one.started > one.task.time_limit:
        one.asked, one.timed_out = now, True
        _signal(one, signal.SIGUSR2)  # what SLURM sends before a time limit


def _signal(one: _Running, number: signal.Signals) -> None:
    """Signal a task and the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(one.process.pid, number)
