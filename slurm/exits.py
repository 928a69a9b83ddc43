"""How each task last exited, one small file per task, so that a failed task can be told from a killed one without sacct.

``slurm/exits/validate/00007.json`` of a run::

    {"code": -9, "at": 1764000000.0, "out_of_memory": false}
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from data_prep.files import read_json
from slurm.process import REQUEUE


@dataclass(frozen=True, slots=True)
class TaskExit:
    """The exit of a task's last attempt that could still record it. A killed node records nothing."""

    code: int  # as in subprocess: negative for a signal
    at: float  # Unix time
    out_of_memory: bool = False  # the kernel killed a process of its cgroup for lack of memory


class FailureReason(StrEnum):
    """Why a task's work is not complete, as far as it can be known."""

    failed = "failed"  # exited with an error of its own, which is in its log: it would fail again
    out_of_memory = "out of memory"
    killed = "killed"  # by a signal, or with its node: may succeed elsewhere
    interrupted = "interrupted"  # asked to stop, by hand or more often than the profile allows
    unfinished = "unfinished"  # exited with 0, yet work is left

    @property
    def retryable(self) -> bool:
        """Whether the same task may succeed the next time."""
        return self not in (FailureReason.failed, FailureReason.out_of_memory)


def exit_folder(slurm_folder: Path, step: str) -> Path:
    """Where a step's tasks record how they exited."""
    return slurm_folder / "exits" / step.replace(":", "-")


def exit_file(slurm_folder: Path, step: str, shard: int | None) -> Path:
    """Where one task records it; one that does several shards, under the first of them."""
    return exit_folder(slurm_folder, step) / f"{'task' if shard is None else f'{shard:05d}'}.json"


def read_exit(path: Path) -> TaskExit | None:
    """How the last attempt exited; None where none could record it."""
    data = read_json(path)
    return TaskExit(**data) if data else None


def failure_reason(task_exit: TaskExit | None, submitted_at: float, sacct_state: str | None) -> FailureReason:
    """Combine what is known of a task whose work is not complete.

    Args:
        task_exit: its last recorded exit.
        submitted_at: when it was submitted; an older exit belongs to an earlier submission.
        sacct_state: such as OUT_OF_MEMORY or NODE_FAIL; None where sacct does not say.
    """
    if sacct_state == "OUT_OF_MEMORY":
        return FailureReason.out_of_memory
    if task_exit is None or task_exit.at < submitted_at:
        return FailureReason.interrupted if sacct_state in ("TIMEOUT", "CANCELLED") else FailureReason.killed
    if task_exit.code < 0:
        return FailureReason.out_of_memory if task_exit.out_of_memory else FailureReason.killed
    if task_exit.code == REQUEUE:
        return FailureReason.interrupted
    return FailureReason.unfinished if task_exit.code == 0 else FailureReason.failed


def oom_kills() -> dict[str, int]:
    """Processes of this process's cgroup that the kernel killed for lack of memory, by the file that counts them.

    SLURM's cgroup plugin puts each task into a cgroup of its own, so that this works on sites without sacct, too.
    Empty where nothing counts.
    """
    counts = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # cgroup v2
            counter = Path(f"/sys/fs/cgroup{group}/memory.events")
        elif "memory" in controllers.split(","):
            counter = Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
        else:
            continue
        with suppress(OSError, ValueError, KeyError):
            counts[str(counter)] = int(dict(row.split() for row in counter.read_text().splitlines())["oom_kill"])
    return counts
