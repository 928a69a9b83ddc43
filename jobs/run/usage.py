"""What each attempt of each task used. By its own account: one small file an attempt, whatever became of it::

    ledger/tasks/train-blip/20260102T030405-9f2c0d1e2f3a.json
    {"host": "gpu3", "shard": null, "rank": 0, "started_at": 1764073423.2, "ended": true, "seconds": 61.2, "cores": 8,
     "gpus": 1.0, "cpu_seconds": 118.4, "max_rss_bytes": 5100000000}

`jobs.backends.meter` writes them. And by SLURM's account, where the site has one: a file a step, which the step's gate writes::

    ledger/slurm/train-blip.json
    {"memory": "16G", "minutes": 720, "jobs": [{"job": "15", "attempts": 2, "seconds": 3600, "gpu_seconds": 7200, ...}]}

Of each job the larger figure counts: SLURM knows what a killed task could not write down, and the task what a site does not gather.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.files import read_json
from data_prep.records import from_dict
from jobs.run.layout import RunDir, Step


@dataclass(slots=True)
class Attempt:
    """One process that worked on a task; a training has one a rank."""

    host: str
    shard: int | None
    rank: int
    started_at: float  # Unix time
    cores: int  # that it may run on
    gpus: float  # that it holds, whether it computes on them or not
    ended: bool = False  # by itself, done or not; else it is running, or was killed
    seconds: float = 0.0  # since its start
    cpu_seconds: float = 0.0  # on all cores, with the processes that it started and that have ended
    max_rss_bytes: int = 0  # the most memory of one process
    job: str = ""  # SLURM's id of the job or array element; "" outside of SLURM


@dataclass(slots=True)
class JobUsage:
    """What all attempts of a job used, as sacct says; see `slurm.watch.accounting`."""

    job: str = ""
    attempts: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0
    node_bytes: int = 0  # of all of its processes on one node together


@dataclass(slots=True)
class StepAccount:
    """What SLURM was asked for, for each task of a step, and what it says that was used."""

    memory: str | None = None  # such as 16G; None where it was not asked for, or by CPU
    minutes: int | None = None  # time limit
    jobs: list[JobUsage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Used:
    """What all attempts of a step used: also those that failed, were interrupted or killed, or whose results are deleted."""

    attempts: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    max_rss_bytes: int = 0
    proposal: str = ""  # what to write into the cluster profile next time; "" where what was asked for fits


def used_by(run: RunDir, step: Step, account: StepAccount | None = None) -> Used:
    """Sum up the attempts of a step.

    Args:
        run: the run.
        step: the step.
        account: what SLURM says now; without it, what it said when the step ended.
    """
    account = account or read_account(run, step)
    attempts = [from_dict(Attempt, fields) for path in run.attempts(step).glob("*.json") if (fields := read_json(path))]
    told = _by_job(attempts)
    jobs = [_larger(told.pop(one.job, JobUsage()), one) for one in account.jobs] + list(told.values())
    most = max((max(one.node_bytes, one.max_rss_bytes) for one in jobs), default=0)
    longest = max((one.longest_seconds for one in jobs), default=0.0)
    return Used(
        attempts=sum(one.attempts for one in jobs),
        gpu_hours=sum(one.gpu_seconds for one in jobs) / 3600,
        cpu_hours=sum(one.cpu_seconds for one in jobs) / 3600,
        max_rss_bytes=max((one.max_rss_bytes for one in jobs), default=0),
        proposal=proposal(most, longest, account) if jobs else "",
    )


def read_account(run: RunDir, step: Step) -> StepAccount:
    """What SLURM said of a step when its gate ran; empty where none did."""
    fields = read_json(run.slurm_account(step)) or {}
    jobs = [from_dict(JobUsage, one) for one in fields.get("jobs", ())]
    return StepAccount(fields.get("memory"), fields.get("minutes"), jobs)


def _by_job(attempts: Sequence[Attempt]) -> dict[str, JobUsage]:
    """What attempts used by their own account, by SLURM job; each one outside of SLURM on its own."""
    found: dict[str, JobUsage] = {}
    processes: dict[tuple[str, str, int], int] = defaultdict(int)  # memory by job, node and rank
    for number, one in enumerate(attempts):
        key = one.job or f"local {number}"
        sums = found.setdefault(key, JobUsage(one.job))
        sums.attempts += 1
        sums.gpu_seconds += one.gpus * one.seconds
        sums.cpu_seconds += one.cpu_seconds
        sums.longest_seconds = max(sums.longest_seconds, one.seconds)
        sums.max_rss_bytes = max(sums.max_rss_bytes, one.max_rss_bytes)
        place = (key, one.host, one.rank)
        processes[place] = max(processes[place], one.max_rss_bytes)
    nodes: dict[tuple[str, str], int] = defaultdict(int)
    for (key, host, _), memory in processes.items():
        nodes[key, host] += memory
    for (key, _), memory in nodes.items():
        found[key].node_bytes = max(found[key].node_bytes, memory)
    return found


def _larger(told: JobUsage, account: JobUsage) -> JobUsage:
    """Of what a job's own tasks and SLURM say of it, the larger figures."""
    names = [name for name in JobUsage.__slots__ if name != "job"]
    return JobUsage(account.job, **{name: max(getattr(told, name), getattr(account, name)) for name in names})


def proposal(node_bytes: int, longest_seconds: float, account: StepAccount) -> str:
    """What to ask for next time, where that is less than half of what was asked for, or more: half as much again as was used.

    Args:
        node_bytes: the most memory of a job on one node; 0 where it is not known.
        longest_seconds: the longest attempt at a task.
        account: what was asked for.
    """
    parts = []
    if account.memory and node_bytes:
        units = {"M": 2**20, "G": 2**30, "T": 2**40}
        asked, wanted = int(account.memory[:-1]) * units[account.memory[-1]], math.ceil(1.5 * node_bytes / 2**30)
        if not asked / 2 <= wanted * 2**30 <= asked and not (wanted == 1 and asked <= 2**30):
            parts.append(f"memory: {wanted}G (used {node_bytes / 2**30:.1f} of {account.memory})")
    if account.minutes and longest_seconds:
        wanted = max(10, math.ceil(1.5 * longest_seconds / 600) * 10)
        if wanted < account.minutes / 2:  # a longer one is not needed: a task that reaches its limit goes on later
            used = f"{longest_seconds / 60:.0f} of {account.minutes} min"
            parts.append(f"time: {wanted // 60}:{wanted % 60:02d}:00 (used {used})")
    return ", ".join(parts)
