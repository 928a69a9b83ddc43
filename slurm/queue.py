"""What SLURM knows of a run's jobs: squeue for those that live, sacct, where the site has it, for how they ended.

A run's jobs are known by their names: every one ends in the run's token, ``validate.3f2a9c1b``. Ids alone would not do: SLURM
uses them again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slurm.profile import SlurmError

GATE_PREFIX = "gate-"


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job, or one element of an array, that waits or runs."""

    id: str  # as squeue writes it: 123, or 123_7 for an array's element
    state: str  # PENDING, RUNNING, COMPLETING, ...
    name: str  # with the run's token
    reason: str  # why it waits: Dependency, Resources, Priority, ...
    node: str
    elapsed: str

    @property
    def step(self) -> str:
        """What the job is about, such as validate or train:blip; the gate after it has the same step."""
        return self.name.rpartition(".")[0].removeprefix(GATE_PREFIX)

    @property
    def is_gate(self) -> bool:
        """Whether it is the small job that looks at a stage's results."""
        return self.name.startswith(GATE_PREFIX)

    @property
    def base(self) -> str:
        """The id of the whole array."""
        return self.id.partition("_")[0]


def run_command(command: Sequence[str], timeout: float = 60.0) -> str:
    """Run one of SLURM's commands; what it prints.

    Raises:
        SlurmError: it is not there, does not answer, or refuses; with its own words.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout, env=outside_of_jobs()
        )
    except FileNotFoundError:
        raise SlurmError(f"There is no command {command[0]} here: log in to a machine of the SLURM cluster.") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout:.0f} s: SLURM is busy or down.") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise SlurmError(f"{command[0]} says: {words}")
    return done.stdout


def outside_of_jobs() -> dict[str, str]:
    """The environment without what SLURM sets inside a job: a job that is submitted from a job would inherit its limits; and
    without the user's own choice of what squeue and sacct show."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("SLURM_", "SLURMD_", "SUBMITIT_", "SRUN_", "SQUEUE_", "SACCT_"))
    }


def live_jobs(token: str) -> list[QueuedJob]:
    """The run's jobs that wait or run, an array's elements one by one.

    Raises:
        SlurmError: squeue is not there or does not answer.
    """
    output = run_command(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%j|%r|%N|%M"])
    jobs = [QueuedJob(*line.split("|", 5)) for line in output.splitlines() if line.count("|") >= 5]
    return [job for job in jobs if job.name.endswith(f".{token}")]


def ended_states(ids: Iterable[str]) -> dict[str, str] | None:
    """How jobs ended, by id (123, 123_7), as sacct says it; None where the site has no accounting.

    States are such as COMPLETED, FAILED, OUT_OF_MEMORY, NODE_FAIL, TIMEOUT, CANCELLED.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--array", "--format=JobID,State"]
    try:
        output = run_command([*command, f"--jobs={','.join(wanted)}"])
    except SlurmError:
        return None
    rows = [line.split("|", 1) for line in output.splitlines() if "|" in line]
    return {row[0]: row[1].split()[0] for row in rows if row[1].strip()}


def cancel(token: str) -> list[QueuedJob]:
    """Cancel the run's jobs and no others; those that were cancelled.

    Raises:
        SlurmError: SLURM does not answer, or refuses.
    """
    jobs = live_jobs(token)
    if jobs:
        # All in one call, or a stage whose gate is cancelled first could start.
        run_command(["scancel", *sorted({job.base for job in jobs}, key=int, reverse=True)])
    return jobs
