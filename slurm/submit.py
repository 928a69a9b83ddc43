"""Submission through submitit: an array of tasks, one job, a training job over several nodes, the gate after each.

One call of sbatch an array; what the array's elements do is pickled beside the submitted script, in the run's folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slurm.profile import GATE, Profile, Resources, SlurmError
from slurm.queue import GATE_PREFIX, outside_of_jobs, run_command

PROJECT = Path(__file__).resolve().parent.parent
LAST_SECONDS = 120  # in which the other processes of a training end when the first has


@dataclass(frozen=True)
class StepWork:
    """One step of a run as SLURM is to run it. Everything is a string or a number: it is written to a file for the gates."""

    name: str  # validate, train:blip
    stage: str  # whose resources it gets
    command: list[str]  # of one task; an array's elements get --shard N at the end
    gate: list[str]  # command that looks at the results
    logs: str  # folder for the tasks' logs
    shards: list[int] | None = None  # an array over these; None for a single job
    after: list[str] = field(default_factory=list)  # steps that must be complete before
    distributed: bool = False  # one task a GPU, which find each other


@dataclass(frozen=True)
class Submitted:
    """One job or array in SLURM's hands."""

    id: str
    shards: list[int | None]  # by array index; [None] for a single job


class Cluster:
    """A site, for one run.

    Args:
        profile: resources and limits.
        folder: the run's folder for SLURM's files, which all nodes see.
        token: the end of the names of all of the run's jobs.
    """

    def __init__(self, profile: Profile, folder: Path, token: str) -> None:
        self.profile = profile
        self.folder = folder
        self.token = token
        if bad := sorted(set(str(folder)) & set("%\n\\")):
            raise SlurmError(f"{folder}: SLURM cannot write to a path with {bad[0]!r} in it. Choose another --run-dir.")

    @cached_property
    def max_array_size(self) -> int:
        """How many elements an array may have here."""
        for line in run_command(["scontrol", "show", "config"]).splitlines():
            if line.startswith("MaxArraySize"):
                return int(line.partition("=")[2])
        return 1001  # SLURM's own default

    def submit(self, work: StepWork, shards: Sequence[int | None], dependency: str = "") -> list[Submitted]:
        """Submit a step's tasks: as few arrays as the site allows.

        Raises:
            SlurmError: sbatch refuses; with its own words.
        """
        size = max(1, self.max_array_size)
        parts = [list(shards[start : start + size]) for start in range(0, len(shards), size)]
        return [Submitted(self._submit_part(work, part, dependency), part) for part in parts]

    def submit_gate(self, work: StepWork, dependency: str) -> str:
        """Submit the job that looks at a step's results; its id."""
        with _submission():
            executor = self._executor(work, GATE, f"{GATE_PREFIX}{work.name}", dependency)
            return str(executor.submit(self._gate_job(work)).job_id)

    def script(self, work: StepWork, dependency: str = "") -> str:
        """The sbatch script of a step, as it would be submitted."""
        with _submission():
            executor = self._executor(work, work.stage, work.name, dependency)
            if work.shards is not None and len(work.shards) > 1:
                executor.parameters["map_count"] = min(len(work.shards), self.max_array_size)
            return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def end_file(self, step: str, shard: int | None) -> Path:
        """Where a task says how it ended."""
        return self.folder / "ends" / step.replace(":", "-") / ("task.json" if shard is None else f"{shard:05d}.json")

    def _submit_part(self, work: StepWork, shards: Sequence[int | None], dependency: str) -> str:
        jobs = [self._task_job(work, shard) for shard in shards]
        with _submission():
            executor = self._executor(work, work.stage, work.name, dependency)
            if len(jobs) == 1:
                return str(executor.submit(jobs[0]).job_id)
            return str(executor.submit_array(jobs)[0].job_id).partition("_")[0]

    def _task_job(self, work: StepWork, shard: int | None) -> Any:
        from slurm.job import CommandJob

        command = work.command if shard is None else [*work.command, "--shard", str(shard)]
        name = "task" if shard is None else f"{shard:05d}"
        return CommandJob(command, work.logs, str(self.end_file(work.name, shard)), name, work.distributed)

    def _gate_job(self, work: StepWork) -> Any:
        from slurm.job import CommandJob

        return CommandJob(work.gate, work.logs, str(self.end_file(f"gate-{work.name}", None)), "gate")

    def _executor(self, work: StepWork, stage: str, name: str, dependency: str) -> Any:
        from submitit import SlurmExecutor  # a heavy import, which status and help never need

        resources = self.profile.resources(stage)
        try:
            executor = SlurmExecutor(
                self.folder / "submitit", max_num_timeout=self.profile.requeues, python=self.profile.python
            )
        except RuntimeError as error:  # no srun
            raise SlurmError(
                "SLURM's commands (srun, sbatch) are not on this machine: log in to the cluster."
            ) from error
        executor.update_parameters(**sbatch_parameters(self.profile, resources, work.distributed and stage != GATE))
        executor.update_parameters(job_name=f"{name}.{self.token}")
        if dependency:
            executor.update_parameters(dependency=dependency)
        return executor


def sbatch_parameters(profile: Profile, resources: Resources, distributed: bool) -> dict[str, Any]:
    """Resources in submitit's words."""
    path = f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    # A dependency that can no longer be met cancels what waits for it, instead of leaving it in the queue for ever.
    flags: dict[str, Any] = {"kill-on-invalid-dep": "yes", "requeue": True}
    flags |= {name: value for name, value in resources.flags.items() if value is not False}
    if resources.nice is not None:
        flags["nice"] = resources.nice
    if resources.gpus:
        # Said as a string, since submitit knows no types of GPUs.
        flags["gpus-per-node"] = f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else resources.gpus
    return {
        "time": resources.time,
        "nodes": resources.nodes if distributed else 1,
        "ntasks_per_node": max(1, resources.gpus) if distributed else 1,
        "cpus_per_task": resources.cpus,
        "mem": resources.memory,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "array_parallelism": resources.parallel,
        "signal_delay_s": profile.grace_seconds,
        "stderr_to_stdout": True,
        # Since SLURM 22.05 srun does not take this over from sbatch: tasks of one node would share CPUs.
        # The processes of a training end together; where one failed, those that wait for it are ended.
        "srun_args": [f"--cpus-per-task={resources.cpus}", *([f"--wait={LAST_SECONDS}"] if distributed else [])],
        "setup": [*profile.setup, *resources.setup, path],
        "additional_parameters": flags,
    }


@contextmanager
def _submission() -> Iterator[None]:
    """Let submitit call sbatch in a clean environment, and say in one sentence why it was refused."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    before = dict(os.environ)
    clean = outside_of_jobs()
    try:
        for name in set(before) - set(clean):
            del os.environ[name]
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if line.startswith("sbatch: error")]
        raise SlurmError(f"sbatch refuses: {' '.join(lines) or error}") from error
    finally:
        os.environ.update(before)
