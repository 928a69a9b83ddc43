"""Writes down what a task uses while it runs, see `jobs.run.usage`: a task that is killed has left its account."""

from __future__ import annotations

import os
import platform
import re
import resource
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from data_prep.files import write_json
from jobs.backends.pool import visible_gpus
from jobs.run.layout import RunDir, Step
from jobs.run.usage import Attempt

REFRESH_SECONDS = 30.0  # the most that a kill takes from the account


class Meter:
    """Keeps one attempt's file while the ``with`` block runs. A file that cannot be written never fails the task.

    Args:
        run: the run.
        step: what the task works on.
        shard: which of its shards; None for a step that is one job.
        needs_gpu: whether the step computes on GPUs.
    """

    def __init__(self, run: RunDir, step: Step, shard: int | None, *, needs_gpu: bool) -> None:
        now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._path = run.attempts(step) / f"{now}-{uuid.uuid4().hex[:12]}.json"
        self._attempt = Attempt(
            host=platform.node(),
            shard=shard,
            rank=int(os.environ.get("RANK", "0")),
            started_at=time.time(),
            cores=int(os.environ.get("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0))),
            gpus=held_gpus(needs_gpu=needs_gpu),
            job=os.environ.get("SLURM_JOB_ID", ""),
        )
        self._began = time.monotonic()
        self._over = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Meter:
        self._write()
        self._refresher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._refresher.join()
        self._attempt.ended = True
        self._write()

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            self._write()

    def _write(self) -> None:
        one = self._attempt
        here, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        one.seconds = round(time.monotonic() - self._began, 3)
        one.cpu_seconds = round(sum(used.ru_utime + used.ru_stime for used in (here, children)), 3)
        one.max_rss_bytes = max(_peak_memory(), children.ru_maxrss * 1024)  # Linux reports KiB
        with suppress(OSError):  # a full disk stops the task itself, with a sentence
            write_json(self._path, one)


def held_gpus(*, needs_gpu: bool) -> float:
    """GPUs that this process holds: what SLURM gave to the job on this node, else what it may use. Ranks share them equally."""
    on_node = os.environ.get("SLURM_GPUS_ON_NODE", "")
    usable = len(visible_gpus()) if needs_gpu else 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    return (int(on_node) if on_node.isdecimal() else usable) / ranks


def _peak_memory() -> int:
    """Peak resident memory of this process, in bytes. Not ru_maxrss, which counts from what the launching process had."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
