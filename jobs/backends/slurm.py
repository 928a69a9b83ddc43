"""The pipeline on a SLURM cluster: a run's steps as a chain of arrays, what the queue knows of it, cancelling, logs.

All steps are queued by one command; gates (`jobs.backends.check_step`) carry the run on, so that the user can log out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from data_prep.files import write_json
from jobs.config import Config
from jobs.pipeline import make_stage, steps_before, task_command
from jobs.run.layout import STAGES, RunDir, Step
from jobs.run.run import RunRecord
from jobs.run.usage import JobUsage, StepAccount
from slurm import queue
from slurm.chain import ChainFolder, StepPhase, submit_chain
from slurm.profile import Profile, load_profile
from slurm.submit import Cluster, StepWork, element_name
from slurm.watch.accounting import usage
from slurm.watch.output import slurm_error
from slurm.watch.reconcile import StepVerdict, reconcile

DEFAULT_PROFILE = "generic"


def chain_folder(run: RunDir) -> ChainFolder:
    """Where SLURM's files of a run are."""
    return ChainFolder(run.slurm)


def read_profile(name: str | Path) -> Profile:
    """A cluster profile, by name or path.

    Raises:
        UserError: there is none of that name, or it has mistakes.
    """
    return load_profile(name, STAGES)


def submit(run: RunDir, config: Config, steps: Sequence[Step], profile: Profile, console: Console) -> int:
    """Queue what is left of the steps; returns at once. The exit code.

    Raises:
        UserError: the run is queued already, or SLURM refuses.
    """
    works = pending_work(run, config, steps, profile)
    for step in steps:
        if str(step) not in {work.name for work in works}:
            console.print(f"[green]✓[/] {step}: done already, skipped")
    if not works:
        console.print("Nothing is left to do.")
        return 0
    for step in steps:
        if any(work.name == str(step) for work in works):
            stage = make_stage(step, run, config)
            if outdated := stage.outdated():
                console.print(f"{step}: {escape(outdated)}: done again", style="yellow")
            stage.before_tasks()
    for name in profile.stages:
        if ":" in name and name.partition(":")[2] not in config.models:
            models = ", ".join(config.models)
            console.print(
                f"note: the profile's stages.{escape(name)} is no step of this run; its models: {models}",
                style="yellow",
            )
    states = submit_chain(chain_folder(run), profile, works)
    for state in states:
        tasks = state.work.tasks
        jobs = ", ".join(job.id for job in state.jobs)
        elements = sum(len(job.elements()) for job in state.jobs)
        packed = f" in {elements:,} jobs, one after the other in each" if elements < tasks else ""
        console.print(
            f"  queued {state.work.name}: {tasks:,} tasks{packed} (job {jobs}), then its gate (job {state.gate})"
        )
    queued = {state.work.name for state in states}
    if later := [work.name for work in works if work.name not in queued]:
        console.print(f"  later, queued by gates, at most {profile.max_queued} jobs at a time: {', '.join(later)}")
    place = escape(repr(str(run.path)))
    console.print(f"You can log out. How far it is:  python launch.py status {place}")
    return 0


def pending_work(run: RunDir, config: Config, steps: Sequence[Step], profile: Profile) -> list[StepWork]:
    """What is left to do, in order. A step that waits for another one is submitted whole: what it will find is not known."""
    works: dict[str, StepWork] = {}
    for step in steps:
        stage = make_stage(step, run, config)
        after = [str(one) for one in steps_before(step, config) if str(one) in works]
        tasks = stage.tasks() if after else stage.pending()
        if not tasks:
            continue
        resources = profile.resources(str(step))
        works[str(step)] = StepWork(
            name=str(step),
            stage=str(step),
            command=task_command(run, step),
            gate=[sys.executable, "-m", "jobs.backends.check_step", str(run.path), str(step)],
            logs=str(run.logs(step)),
            shards=None if tasks == [None] else [task for task in tasks if task is not None],
            after=after,
            distributed=stage.process_per_gpu and resources.processes * resources.nodes > 1,
        )
    return list(works.values())


def show_scripts(run: RunDir, config: Config, steps: Sequence[Step], profile: Profile, console: Console) -> None:
    """Print, per step, a script that asks for what a launch would ask for, and that can be submitted by hand."""
    works = {work.name: work for work in pending_work(run, config, steps, profile)}
    cluster = Cluster(profile, chain_folder(run).path, "RUN")
    for step in steps:
        work = works.get(str(step))
        if work is None:
            console.print(f"{step}: done already, would be skipped", style="bold")
            continue
        tasks = "one job" if work.shards is None else f"{len(work.shards):,} tasks"
        waits = f", after the gates of {', '.join(work.after)}" if work.after else ""
        console.print(f"{step}: {tasks}{waits}; then its gate", style="bold")
        console.print(escape(cluster.script_by_hand(work)))
    console.print(
        "Nothing was submitted. Each script asks for what a launch would ask for, and can be submitted by hand with sbatch: once the "
        "run exists (launch with --cluster local --stages prepare), and the steps before it are complete. A launch submits them all, "
        "with gates between them."
    )


def look(run: RunDir) -> tuple[dict[str, Counter[str]] | None, dict[str, StepVerdict]]:
    """What SLURM knows of a run, in one look: its jobs per step and state (RUNNING, PENDING, ...), and a verdict a step.

    A step's gate is counted under ``GATE``. No counts where squeue does not answer or was never used.
    """
    found = reconcile(chain_folder(run))
    if found.jobs is None:
        return None, found.verdicts
    counts: dict[str, Counter[str]] = {}
    for job in found.jobs:
        counts.setdefault(job.step, Counter())["GATE" if job.is_gate else job.state] += 1
    return counts, found.verdicts


def queue_counts(run: RunDir) -> dict[str, Counter[str]] | None:
    """The counts of `look`."""
    return look(run)[0]


def accounts(run: RunDir) -> dict[str, StepAccount]:
    """What the steps of the last submission asked SLURM for and used in all submissions, by step, as sacct says now.

    Steps are missing where sacct does not answer.
    """
    folder = chain_folder(run)
    token, chain, record = folder.known_token(), folder.chain(), RunRecord.read(run)
    if token is None or chain is None or record is None:
        return {}
    found = usage({f"{step}.{token}": step for step in chain.steps}, record.created_at)
    accounts = {}
    for name in chain.steps if found is not None else ():
        asked = chain.profile.resources(chain.work(name).stage)
        jobs = [JobUsage(**asdict(one)) for one in (found or {}).get(name, ())]
        accounts[name] = StepAccount(asked.memory, asked.time, jobs)
    return accounts


def keep_account(run: RunDir, step: Step) -> None:
    """Write down what SLURM says that a step has used: the report is written where sacct may not answer."""
    folder = chain_folder(run)
    if (chain := folder.chain()) is not None:
        asked = chain.profile.resources(chain.work(str(step)).stage)
        empty = StepAccount(asked.memory, asked.time)
        write_json(run.slurm_account(step), accounts(run).get(str(step), empty))


def outputs(run: RunDir, step: Step) -> dict[str, dict[Path, str]]:
    """What SLURM itself wrote about the tasks of a step, beside their own logs: by task as logs name it, and file, its error."""
    folder = chain_folder(run)
    if (state := folder.step(str(step))) is None:
        return {}
    found = {state.gate: "gate"}
    for job in state.jobs:
        found |= {id: "task" if part[0] is None else element_name(part) for id, part in job.elements().items()}
    by_task = {task: {path: slurm_error([path]) for path in folder.outputs(id)} for id, task in found.items()}
    return {task: paths for task, paths in by_task.items() if paths}


def require_empty_queue(run: RunDir) -> None:
    """Check that no job of the run waits or runs.

    Raises:
        UserError: some do, or squeue does not answer.
    """
    chain_folder(run).require_empty_queue()


def stopped_steps(run: RunDir) -> dict[str, str]:
    """Steps at which the last chain stopped, and what their gates said of it."""
    folder = chain_folder(run)
    chain = folder.chain()
    states = [folder.step(name) for name in chain.steps] if chain else []
    return {
        state.work.name: state.message for state in states if state is not None and state.phase is StepPhase.STOPPED
    }


def cancel(run: RunDir, console: Console) -> int:
    """Cancel this run's jobs and no others; the exit code.

    Raises:
        UserError: SLURM does not answer.
    """
    folder = chain_folder(run)
    token = folder.known_token()
    if token is None:
        console.print(
            "This run is a copy: the jobs in the queue are those of the original, so nothing was cancelled."
            if folder.is_copy()
            else "This run was never submitted to SLURM."
        )
        return 0
    jobs = queue.cancel(token)
    if jobs:
        folder.mark_cancelled()
    names = Counter(job.step for job in jobs if not job.is_gate)
    console.print(
        f"Cancelled {len(jobs)} jobs: {', '.join(f'{n} ({c})' for n, c in names.items()) or 'none were queued'}"
    )
    return 0
