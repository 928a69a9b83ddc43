"""Submission through submitit: arrays of tasks, single jobs, training jobs over several nodes, and the gate after each.

One sbatch call per array. submitit pickles what each element does beside the submitted script, in the run's folder.
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
from slurm.queue import GATE_PREFIX, env_without_slurm, run_command

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


@dataclass(frozen=True)
class SubmittedJob:
    """One job or array in SLURM's queue."""

    id: str
    shards: list[int | None]  # by array index; [None] for a single job


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

    def submit(self, work: StepWork, shards: Sequence[int | None], dependency: str = "") -> list[SubmittedJob]:
        """Submit a step's tasks, in as few arrays as the site allows.

        Raises:
            SlurmError: sbatch refuses; with its own message.
        """
        size = max(1, self.max_array_size)
        parts = [list(shards[start : start + size]) for start in range(0, len(shards), size)]
        return [SubmittedJob(self._submit_part(work, part, dependency), part) for part in parts]

    def submit_gate(self, work: StepWork, dependency: str) -> str:
        """Submit the job that checks a step's results; its id."""
        from slurm.job import CommandJob

        job = CommandJob(work.gate, work.logs, str(self.exit_file(f"{GATE_PREFIX}{work.name}", None)), "gate")
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

    def exit_file(self, step: str, shard: int | None) -> Path:
        """Where a task records how it exited."""
        return self.folder / "exits" / step.replace(":", "-") / f"{_task_name(shard)}.json"

    def _submit_part(self, work: StepWork, shards: Sequence[int | None], dependency: str) -> str:
        from slurm.job import CommandJob

        jobs = []
        for shard in shards:
            command = work.command if shard is None else [*work.command, "--shard", str(shard)]
            exit_file = str(self.exit_file(work.name, shard))
            jobs.append(CommandJob(command, work.logs, exit_file, _task_name(shard), work.distributed))
        with _submission():
            executor = self._executor(work, work.stage, work.name, dependency)
            if len(jobs) == 1:  # an array of one would have ids of another form
                return str(executor.submit(jobs[0]).job_id)
            return str(executor.submit_array(jobs)[0].job_id).partition("_")[0]

    def _executor(self, work: StepWork, stage: str, name: str, dependency: str) -> Any:
        from submitit import SlurmExecutor  # slow to import; status and --help never need it

        resources = self.profile.resources(stage)
        try:
            executor = SlurmExecutor(
                self.folder / "submitit", max_num_timeout=self.profile.requeues, python=self.profile.python
            )
        except RuntimeError as error:  # no srun
            raise SlurmError("srun is not installed here: log in to a machine of the SLURM cluster.") from error
        executor.update_parameters(**sbatch_parameters(self.profile, resources, work.distributed and stage != GATE))
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
        flags["gpus-per-node"] = f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else resources.gpus
    # Since SLURM 22.05 srun does not inherit --cpus-per-task from sbatch: without it, tasks on one node would share CPUs.
    srun_args = [f"--cpus-per-task={resources.cpus}"]
    if distributed:
        # When one rank fails, the others hang in a collective operation: srun kills them after this time.
        srun_args.append(f"--wait={RANK_GRACE_SECONDS}")
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
        "srun_args": srun_args,
        "setup": [*profile.setup, *resources.setup, python_path_line()],
        "additional_parameters": flags,
    }


def _task_name(shard: int | None) -> str:
    return "task" if shard is None else f"{shard:05d}"


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
        raise SlurmError(f"sbatch refused the job: {' '.join(lines) or error}") from error
    finally:
        os.environ.update(before)
