"""What SLURM knows of a run's jobs: squeue for live ones and, where the site has it, sacct for how they ended.

A run's jobs are recognized by name: each name ends in the run's name and token, ``validate.abo.3f2a9c1b``. Ids alone would not
do, because SLURM reuses them.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from slurm.profile import SlurmError, minutes

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
        return self.name.rsplit(".", 2)[0].removeprefix(GATE_PREFIX)

    @property
    def is_gate(self) -> bool:
        """Whether it is the small job that checks a step's results."""
        return self.name.startswith(GATE_PREFIX)

    @property
    def is_held(self) -> bool:
        """Whether it waits until somebody releases it."""
        return self.state in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT") and bool(
            re.search("held|hold", f"{self.reason} {self.state}", re.IGNORECASE)
        )

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


def live_jobs(token: str, owner: int | None = None) -> list[QueuedJob]:
    """The run's waiting and running jobs, each array element on its own; ``owner``: whose they are (default: this user).

    Raises:
        SlurmError: squeue does not exist or does not answer.
    """
    user = os.getuid() if owner is None else owner
    output = run_command(["squeue", "--noheader", "--array", f"--user={user}", "--format=%i|%T|%j|%r|%N"])
    jobs = [QueuedJob(*line.split("|", 4)) for line in output.splitlines() if line.count("|") >= 4]
    return [job for job in jobs if job.name.endswith(f".{token}")]


def sacct_states(ids: Iterable[str]) -> dict[str, str] | None:
    """How jobs ended, by id (123, 123_7); None where the site has no accounting.

    States are such as COMPLETED, FAILED, OUT_OF_MEMORY, NODE_FAIL, TIMEOUT, CANCELLED.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
    try:
        output = run_command([*command, f"--jobs={','.join(wanted)}"])
    except SlurmError:
        return None
    rows = [line.split("|", 1) for line in output.splitlines() if "|" in line]
    # The first word: sacct writes "CANCELLED by 1000".
    return {row[0]: row[1].split()[0] for row in rows if row[1].strip()}


def submission_limit(qos: Sequence[str]) -> tuple[int | None, str]:
    """How many jobs this user may have in the queue, and what says so; None where nothing does.

    Args:
        qos: the QOS that jobs ask for; without any, the user's default one counts.
    """
    user = pwd.getpwuid(os.getuid()).pw_name
    found: list[tuple[int, str]] = []
    with suppress(SlurmError):
        shown = ["sacctmgr", "--noheader", "--parsable2", "show"]
        rows = run_command([*shown, "assoc", f"user={user}", "format=MaxSubmitJobs,DefaultQOS,QOS"]).splitlines()
        names = set(qos)
        for limit, default, allowed in (row.split("|", 2) for row in rows if row.count("|") >= 2):
            found += [(int(limit), f"limit of the account of {user}")] if limit.isdecimal() else []
            names |= set() if qos else set(filter(None, [default or allowed.partition(",")[0]]))
        for row in run_command([*shown, "qos", "format=Name,MaxSubmitJobsPU,MaxSubmitJobsPA,GrpSubmit"]).splitlines():
            name, *limits = row.split("|")
            found += [(int(one), f"limit of the QOS {name}") for one in limits if one.isdecimal() and name in names]
    with suppress(SlurmError):
        match = re.search(r"^MaxJobCount\s*=\s*(\d+)", run_command(["scontrol", "show", "config"]), re.MULTILINE)
        found += [(int(match[1]), "MaxJobCount of the site, shared by all users")] if match else []
    return min(found) if found else (None, "")


def partition_minutes(partition: str | None) -> int | None:
    """The longest time limit of a partition, or of the default one; None where there is none, or sinfo does not say."""
    with suppress(SlurmError, ValueError):
        for row in run_command(["sinfo", "--noheader", "--format=%P|%l"]).splitlines():
            name, _, limit = row.partition("|")
            if (name.endswith("*") and partition is None) or name.rstrip("*") == partition:
                return None if limit == "infinite" else minutes(limit)
    return None


def unfinished_jobs(ids: Sequence[str]) -> list[str]:
    """Those of some jobs that have not ended.

    Raises:
        SlurmError: one of them ended without success.
    """
    left = []
    for one in ids:
        try:
            shown = run_command(["scontrol", "--oneliner", "show", "job", one])
            states = set(re.findall(r"JobState=(\w+)", shown))
        except SlurmError:  # SLURM forgets jobs some minutes after their end
            states = {(sacct_states([one]) or {}).get(one, "COMPLETED")}
        if wrong := states & {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}:
            raise SlurmError(
                f"Job {one}, which this run is to follow, ended as {wrong.pop()}: run it again, or leave it out."
            )
        left += [one] if states != {"COMPLETED"} else []
    return left


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
