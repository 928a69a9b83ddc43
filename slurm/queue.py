"""What SLURM knows of a run's jobs: squeue for live ones and, where the site has it, sacct for how they ended.

A run's jobs are recognized by name: each name ends in the run's token, ``validate.3f2a9c1b``. Ids alone would not do, because
SLURM reuses them.
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

    id: str  # as squeue writes it: 123, or 123_7 for an array element
    state: str  # PENDING, RUNNING, COMPLETING, ...
    name: str  # with the run's token
    reason: str  # why it waits: Dependency, Resources, Priority, ...
    node: str

    @property
    def step(self) -> str:
        """The step, such as validate or train:blip; also that of a gate."""
        return self.name.rpartition(".")[0].removeprefix(GATE_PREFIX)

    @property
    def is_gate(self) -> bool:
        """Whether it is the small job that checks a step's results."""
        return self.name.startswith(GATE_PREFIX)

    @property
    def base(self) -> str:
        """The id of the whole array."""
        return self.id.partition("_")[0]


def run_command(command: Sequence[str], stdin: str = "", timeout: float = 60.0) -> str:
    """Run one of SLURM's commands; its output.

    Raises:
        SlurmError: it does not exist, does not answer, or fails; with its own message.
    """
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout, env=env_without_slurm()
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed here: log in to a machine of the SLURM cluster.") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout:.0f} s: try again when SLURM is up.") from None
    if done.returncode:
        message = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise SlurmError(f"{command[0]} failed: {message}")
    return done.stdout


def env_without_slurm() -> dict[str, str]:
    """This process's environment without the variables that SLURM sets inside a job and those that change its output.

    A job that is submitted from inside a job would otherwise inherit the outer one's limits.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("SLURM_", "SLURMD_", "SUBMITIT_", "SRUN_", "SQUEUE_", "SACCT_"))
    }


def live_jobs(token: str) -> list[QueuedJob]:
    """The run's waiting and running jobs, each array element on its own.

    Raises:
        SlurmError: squeue does not exist or does not answer.
    """
    output = run_command(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%j|%r|%N"])
    jobs = [QueuedJob(*line.split("|", 4)) for line in output.splitlines() if line.count("|") >= 4]
    return [job for job in jobs if job.name.endswith(f".{token}")]


def sacct_states(ids: Iterable[str]) -> dict[str, str] | None:
    """How jobs ended, by id (123, 123_7); None where the site has no accounting.

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
    # The first word: sacct writes "CANCELLED by 1000".
    return {row[0]: row[1].split()[0] for row in rows if row[1].strip()}


def cancel(token: str) -> list[QueuedJob]:
    """Cancel the run's jobs and no others; the cancelled jobs.

    Raises:
        SlurmError: SLURM does not answer, or refuses.
    """
    jobs = live_jobs(token)
    if jobs:
        # In one call: if a step's tasks were cancelled first, its gate would start, and could submit them again.
        run_command(["scancel", *sorted({job.base for job in jobs}, key=int, reverse=True)])
    return jobs
