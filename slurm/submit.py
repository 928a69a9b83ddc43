"""Submission through submitit: arrays of tasks, single jobs, training jobs over several nodes, and the gate after each.

One sbatch call per array. submitit pickles what each element does beside the submitted script, in the run's folder.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from slurm.exits import exit_file
from slurm.profile import GATE, Profile, Resources, SlurmError
from slurm.queue import GATE_PREFIX, env_without_slurm, partition_minutes, run_command

T = TypeVar("T")

# How SLURM says that a user, an account or the site has as many jobs in the queue as it may have.
LIMIT = re.compile(r"MaxSubmit|job submit limit|GrpSubmit|temporarily unable to accept", re.IGNORECASE)
PROJECT = Path(__file__).resolve().parent.parent
RANK_GRACE_SECONDS = 120  # for the other processes of a training once the first has exited


@dataclass(frozen=True)
class StepWork:
    """One step of a run, as SLURM is to run it. A gate reads it back from a file to submit the step again."""

    name: str  # validate, train:blip
    stage: str  # the stage of the profile whose resources it gets
    command: list[str]  # of one task; array elements get --shard N at the end
    gate: list[str]  # the command that checks the results
    logs: str  # folder of the tasks' logs
    shards: list[int] | None = None  # one array element each; None for a single job
    after: list[str] = field(default_factory=list)  # steps that must be complete first
    distributed: bool = False  # one process per GPU, which find each other through torch.distributed's variables

    @property
    def tasks(self) -> int:
        """How many tasks it has."""
        return 1 if self.shards is None else len(self.shards)


class SubmissionLimit(SlurmError):
    """The site takes no more jobs of this user; fewer of them, or later, it may."""


@dataclass(frozen=True)
class SubmittedJob:
    """One job or array in SLURM's queue."""

    id: str
    shards: list[int | None]  # in order; [None] for a single job
    per_element: int = 1  # how many of them each element of the array does, one after the other

    def elements(self) -> dict[str, list[int | None]]:
        """The shards of each element, by its id: 12_0, 12_1, or 12 where it is no array."""
        parts = split(self.shards, self.per_element)
        return {self.id: parts[0]} if len(parts) == 1 else {f"{self.id}_{n}": part for n, part in enumerate(parts)}


class Cluster:
    """A site, for one run.

    Args:
        profile: resources and limits.
        folder: the run's folder of SLURM files, which all nodes see.
        token: the suffix of all of the run's job names.
    """

    def __init__(self, profile: Profile, folder: Path, token: str) -> None:
        self.profile = profile
        self.folder = folder
        self.token = token
        # sbatch expands %j and the like in paths of logs, and reads a backslash as an escape.
        if bad := sorted(set(str(folder)) & set("%\n\\")):
            raise SlurmError(
                f"{folder}: SLURM cannot write to a path that contains {bad[0]!r}. Choose another --run-dir."
            )

    @cached_property
    def max_array_size(self) -> int:
        """The site's limit of elements per array."""
        for line in run_command(["scontrol", "show", "config"]).splitlines():
            if line.startswith("MaxArraySize"):
                return int(line.partition("=")[2])
        return 1001  # SLURM's default

    def submit(
        self, work: StepWork, shards: Sequence[int | None], dependency: str = "", elements: int | None = None
    ) -> list[SubmittedJob]:
        """Submit a step's tasks, in as few arrays as the site allows.

        Args:
            work: the step.
            shards: which of its tasks.
            dependency: what they wait for.
            elements: in at most so many jobs; more shards than that are done one after the other in each.

        Raises:
            SlurmError: sbatch refuses, with its own message; then none of them stays in the queue.
        """
        most = elements or len(shards)
        if self.profile.max_queued is not None:  # one place is its gate's, and one that of the gate that submits it
            most = min(most, self.profile.max_queued - 2)
        each = math.ceil(len(shards) / most)
        jobs: list[SubmittedJob] = []
        try:
            for part in split(shards, each * max(1, self.max_array_size)):
                jobs.append(SubmittedJob(self._submit_part(work, split(part, each), dependency), part, each))
        except SlurmError:
            if jobs:
                run_command(["scancel", *(job.id for job in jobs)])
            raise
        return jobs

    def submit_gate(self, work: StepWork, dependency: str) -> str:
        """Submit the job that checks a step's results; its id."""
        from slurm.job import CommandJob

        job = CommandJob(work.gate, work.logs, str(exit_file(self.folder, f"{GATE_PREFIX}{work.name}", None)), "gate")
        with _submission():
            executor = self._executor(work, GATE, f"{GATE_PREFIX}{work.name}", dependency)
            return str(executor.submit(job).job_id)

    def script(self, work: StepWork, dependency: str = "") -> str:
        """The sbatch script of a step, as it would be submitted."""
        with _submission():
            executor = self._executor(work, work.stage, work.name, dependency)
            if work.shards is not None and len(work.shards) > 1:
                executor.parameters["map_count"] = min(len(work.shards), self.max_array_size)
            return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def script_by_hand(self, work: StepWork) -> str:
        """An sbatch script that can be pasted: the same requests as `script`, without its pickles; the task requeues itself."""
        head = self.script(work).partition("\n# command\n")[0]
        shards = work.shards or []
        if array := re.search(r"--array=[^%\n]*(%\d+)", head):
            head = head.replace(array[0], f"--array={','.join(map(str, shards))}{array[1]}")
        # sbatch fails without a word where the folder of an output is not there.
        output = "%x-%A_%a.log" if array else "%x-%j.log"
        head = re.sub(r"(?m)^#SBATCH --output=.*$", f"#SBATCH --output={output}", head)
        index = '"$SLURM_ARRAY_TASK_ID"' if array else str(shards[0]) if shards else '""'
        command = shlex.join([*work.command, *(["--shard"] if shards else [])]) + (f" {index}" if shards else "")
        helper = shlex.quote(str(PROJECT / "slurm" / "by_hand.sh"))
        return f"{head}\n# command\n. {helper}\nrun_task {shlex.quote(work.logs)} {index} {command}\n"

    def _submit_part(self, work: StepWork, elements: Sequence[Sequence[int | None]], dependency: str) -> str:
        from slurm.job import CommandJob

        jobs = []
        for shards in elements:
            options = [word for shard in shards if shard is not None for word in ("--shard", str(shard))]
            exits = str(exit_file(self.folder, work.name, shards[0]))
            jobs.append(CommandJob([*work.command, *options], work.logs, exits, element_name(shards), work.distributed))
        with _submission():
            executor = self._executor(work, work.stage, work.name, dependency)
            if len(jobs) == 1:  # an array of one would have ids of another form
                return str(executor.submit(jobs[0]).job_id)
            return str(executor.submit_array(jobs)[0].job_id).partition("_")[0]

    def _executor(self, work: StepWork, stage: str, name: str, dependency: str) -> Any:
        from submitit import SlurmExecutor  # slow to import; status and --help never need it

        resources = self.profile.resources(stage)
        if stage == GATE and (limit := partition_minutes(resources.partition)):
            resources = resources.model_copy(update={"time": min(resources.time, limit)})
        try:
            executor = SlurmExecutor(
                self.folder / "submitit", max_num_timeout=self.profile.requeues, python=self.profile.python
            )
        except RuntimeError as error:  # no srun
            raise SlurmError("srun is not installed here: log in to a machine of the SLURM cluster.") from error
        executor.update_parameters(**sbatch_parameters(self.profile, resources, work.distributed and stage != GATE))
        executor.parameters["additional_parameters"].setdefault("comment", f"product-vqa {self.folder.parent}")
        executor.update_parameters(job_name=f"{name}.{self.token}")
        if dependency:
            executor.update_parameters(dependency=dependency)
        return executor


def python_path_line() -> str:
    """The shell line that makes the project's packages importable on a node."""
    return f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"


def sbatch_parameters(profile: Profile, resources: Resources, distributed: bool) -> dict[str, Any]:
    """Resources under the names that submitit gives to sbatch's options."""
    # kill-on-invalid-dep: a job whose dependency can no longer be met is cancelled; by default it stays pending forever.
    flags: dict[str, Any] = {"kill-on-invalid-dep": "yes", "requeue": True}
    flags |= {name: value for name, value in resources.flags.items() if value is not False}
    if resources.nice is not None:
        flags["nice"] = resources.nice
    if resources.gpus:
        # Not submitit's own gpus_per_node, which is a number and so has no room for a type.
        number = f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else str(resources.gpus)
        flags[resources.gpu_option] = f"gpu:{number}" if resources.gpu_option == "gres" else number
    # Since SLURM 22.05 srun does not inherit --cpus-per-task from sbatch: without it, tasks on one node would share CPUs.
    srun_args = [f"--cpus-per-task={resources.cpus}"]
    if distributed:
        # When one rank fails, the others hang in a collective operation: srun kills them after this time.
        srun_args.append(f"--wait={RANK_GRACE_SECONDS}")
    return {
        "time": resources.time,
        "nodes": resources.nodes if distributed else 1,
        "ntasks_per_node": resources.processes if distributed else 1,
        "cpus_per_task": resources.cpus,
        "mem": resources.memory,
        "mem_per_cpu": resources.memory_per_cpu,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "wckey": resources.wckey,  # submitit's default is a word of its own, which a site that checks keys refuses
        "array_parallelism": resources.parallel,
        "signal_delay_s": profile.grace_seconds,
        "stderr_to_stdout": True,
        "srun_args": srun_args,
        "setup": [*profile.setup, *resources.setup, python_path_line()],
        "additional_parameters": flags,
    }


def split(items: Sequence[T], size: int) -> list[list[T]]:
    """Cut a sequence into parts of a size; the last one may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def element_name(shards: Sequence[int | None]) -> str:
    """How logs name an element: task, 00003, or 00003-00005 where it does several shards."""
    if shards[0] is None:
        return "task"
    return "-".join(f"{shard:05d}" for shard in dict.fromkeys((shards[0], shards[-1])))


@contextmanager
def _submission() -> Iterator[None]:
    """Let submitit call sbatch in a clean environment, and report in one sentence why sbatch refused."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # submitit passes no environment to sbatch, which therefore reads this process's own.
    before = dict(os.environ)
    for name in set(before) - set(env_without_slurm()):
        del os.environ[name]
    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if line.startswith("sbatch: error")]
        message = f"sbatch refused the job: {' '.join(lines) or error}"
        raise (SubmissionLimit if LIMIT.search(message) else SlurmError)(message) from error
    finally:
        os.environ.update(before)
