"""What jobs used by SLURM's own account (sacct): every attempt, also of those that were requeued, killed or cancelled.

::

    $ sacct --duplicates --parsable2 --name=train:blip.abo.3f2a9c1b --format=JobIDRaw,JobName,ElapsedRaw,TotalCPU,MaxRSS,AllocTRES
    15|train:blip.abo.3f2a9c1b|3600|01:10:00||cpu=8,gres/gpu=2,mem=16G,node=1
    15.0|python|3598|01:09:58|5120000K|cpu=8,gres/gpu=2,mem=16G,node=1
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from slurm.profile import SlurmError
from slurm.queue import run_command

FIELDS = "JobIDRaw,JobName,ElapsedRaw,TotalCPU,MaxRSS,AllocTRES"
ANSWER_SECONDS = 20.0  # a database that is slower than this is not waited for
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(slots=True)
class JobUsage:
    """What all attempts of a job used; of an array, each element is a job."""

    job: str  # the id that the job itself has in SLURM_JOB_ID
    attempts: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0  # of one attempt
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0  # that were computed, not only held
    max_rss_bytes: int = 0  # the most memory of one of its processes and their children


def usage(names: Mapping[str, str], since: float) -> dict[str, list[JobUsage]] | None:
    """What jobs used, by step; None where the site has no accounting for users, or it does not answer.

    Args:
        names: the step by the name of its jobs.
        since: Unix time before the first of them was submitted.
    """
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", f"--starttime={start}", f"--format={FIELDS}"]
    try:
        output = run_command([*command, f"--name={','.join(names)}"], timeout=ANSWER_SECONDS)
    except SlurmError:
        return None
    steps: dict[str, str] = {}  # by job
    found: dict[str, JobUsage] = {}
    for row in (line.split("|") for line in output.splitlines() if line.count("|") == FIELDS.count(",")):
        job, _, part = row[0].partition(".")
        one = found.setdefault(job, JobUsage(job))
        one.max_rss_bytes = max(one.max_rss_bytes, size(row[4]))
        if part or row[1] not in names:
            continue
        steps[job] = names[row[1]]
        seconds = float(row[2] or 0)
        one.attempts += seconds > 0
        one.seconds += seconds
        one.longest_seconds = max(one.longest_seconds, seconds)
        one.gpu_seconds += seconds * gpus(row[5])
        one.cpu_seconds += duration(row[3])
    by_step: dict[str, list[JobUsage]] = {}
    for job, step in steps.items():
        by_step.setdefault(step, []).append(found[job])
    return by_step


def gpus(resources: str) -> int:
    """The GPUs in what sacct calls TRES: ``cpu=8,gres/gpu:a100=2,gres/gpu=2,node=1``."""
    found = {name: int(count) for name, count in re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", resources)}
    return found.get("", sum(found.values()))


def duration(text: str) -> float:
    """Seconds of a time as sacct writes it: ``00:01.250``, ``01:02:03``, ``1-02:03:04``."""
    days, dash, rest = text.rpartition("-")
    parts = [float(part) for part in rest.split(":") if part]
    return (float(days) * 86400 if dash else 0.0) + sum(part * 60**n for n, part in enumerate(reversed(parts)))


def size(text: str) -> int:
    """Bytes of a size as sacct writes it: ``476114K``, ``1.50G``, "" for none."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return int(float(match[1]) * UNITS[match[2]]) if match else 0
