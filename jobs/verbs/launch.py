"""``launch.py --cluster local|slurm``: resolve the request, check it, hand it to a back end. And ``resume``, ``cancel``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.generate import models
from data_prep.outcomes import UserError, UserErrors, collected
from jobs.backends.local import run_local
from jobs.config import DEFAULT_CONFIG, Config, ConfigErrors, load_config
from jobs.options import Cluster, LaunchRequest, ResumeRequest
from jobs.pipeline import make_stage, parse_stages, steps_of
from jobs.preflight import low_disk, missing
from jobs.run.claim import claimed
from jobs.run.layout import RunDir, Step
from jobs.run.run import RunRecord, load_run, open_run


def launch(request: LaunchRequest, console: Console) -> int:
    """Run the pipeline; the exit code.

    Raises:
        UserError: wrong usage or configuration, or something that the steps need is missing; all that was found.
    """
    findings: list[str] = []
    config: Config | None = None
    try:
        config = load_config(request.config or DEFAULT_CONFIG, keys_of(request.overrides, request.shards))
    except ConfigErrors as errors:
        findings, config = errors.findings, errors.rest
    except UserError as error:
        findings = [str(error)]
    return start(request, config, RunDir(folder_of(request.config, request.run_dir).resolve()), console, findings)


def resume(request: ResumeRequest, console: Console) -> int:
    """Go on with a run under its own configuration, as it was launched last; the exit code.

    Raises:
        UserError: the folder is not a run, or a changed key is wrong.
    """
    run, config = load_run(request.run_dir, keys_of(request.overrides, request.shards))
    record = RunRecord.read(run)
    assert record is not None
    known = next((launch.options for launch in reversed(record.launches) if launch.options), {})
    same = LaunchRequest(
        cluster=request.cluster or Cluster(known.get("cluster", "local")),
        profile=request.profile or known.get("profile"),
        stages=request.stages or known.get("stages"),
        workers=request.workers,
        redo=request.redo,
        dry_run=request.dry_run,
    )
    if request.stages is None and same.stages:
        console.print(f"Only the stages of its last launch, {same.stages}; --stages names others.", markup=False)
    return start(same, config, run, console)


def start(
    request: LaunchRequest, config: Config | None, run: RunDir, console: Console, findings: Sequence[str] = ()
) -> int:
    """Check a launch, and hand it to a back end; the exit code.

    Args:
        request: its options.
        config: the configuration; None where it cannot be read.
        run: where the run is or will be.
        console: takes what is said.
        findings: what is wrong with the configuration.

    Raises:
        UserError: wrong usage or configuration, or something that the steps need is missing; all that was found.
    """
    found = list(findings)
    stages: list[str] = []
    steps: list[Step] = []
    with collected(found):
        stages = parse_stages(request.stages)
    if config is not None and stages:
        steps = steps_of(config, stages)
        if not steps:
            found.append(f"{', '.join(stages)}: data.dataset_csv takes their place. Start with --stages curate.")
    if request.cluster is Cluster.slurm:
        from jobs.backends import slurm  # only runs on SLURM need it

        with collected(found):
            profile = slurm.read_profile(request.profile or slurm.DEFAULT_PROFILE)
    if config is not None and not request.dry_run:
        found += missing(run, config, steps)
    if found or config is None:
        raise UserErrors([*found, *filter(None, [low_disk(run.path)])])
    if request.dry_run:
        if request.cluster is Cluster.slurm:
            slurm.show_scripts(run, config, steps, profile, console)
        else:
            show_dry_run(run, config, steps, console)
        return 0
    with sole_writer(run):
        # Before anything that was made under another configuration is changed.
        for step in steps:
            make_stage(step, run, config).check_settings(redo=request.redo)
        options = {"cluster": request.cluster, "profile": request.profile, "stages": request.stages}
        run, notes = open_run(run.path, config, sys.argv, redo=request.redo, options=options)
        console.print(f"Run directory: {escape(str(run.path))}", style="bold")
        notes += filter(None, [low_disk(run.path)])
        for asking in (config.generate, config.verify):
            if asking.stand_in is None and any(step.stage == asking.section for step in steps):
                notes += models.notices(asking.model, models.today())
        for note in notes:
            console.print(f"note: {escape(note)}", style="yellow")
        if request.cluster is Cluster.slurm:
            return slurm.submit(run, config, steps, profile, console)
        return run_local(run, config, steps, request.workers, console)


def cancel(run_dir: Path, console: Console) -> int:
    """Cancel a run's jobs in SLURM's queue, and no others; the exit code.

    Raises:
        UserError: the folder is not a run, or SLURM does not answer.
    """
    run, _ = load_run(run_dir)
    from jobs.backends import slurm  # only runs on SLURM need it

    return slurm.cancel(run, console)


def resolve(path: Path | None, run_dir: Path | None, overrides: Sequence[str]) -> tuple[Config, Path]:
    """The configuration and the run's folder that the options name.

    Raises:
        UserError: the configuration is wrong.
    """
    return load_config(path or DEFAULT_CONFIG, overrides), folder_of(path, run_dir)


def folder_of(path: Path | None, run_dir: Path | None) -> Path:
    """The run's folder that the options name: without ``--run-dir`` it is called after the configuration."""
    return run_dir or Path("runs") / (path or DEFAULT_CONFIG).stem


def keys_of(overrides: Sequence[str] | None, shards: int | None) -> list[str]:
    """What ``--set`` and ``--shards`` set, as `load_config` takes it."""
    sharded = () if shards is None else ("validate", "generate", "verify", "evaluate")
    return [*(overrides or ()), *(f"{stage}.shards={shards}" for stage in sharded)]


@contextmanager
def sole_writer(run: RunDir) -> Iterator[None]:
    """Write into a run: no other command does meanwhile, and no job of it is in SLURM's queue.

    Raises:
        UserError: somebody else writes, which is named; or squeue does not answer, so that jobs may be running.
    """
    with claimed(run):
        if run.slurm.is_dir():
            from jobs.backends import slurm  # only runs on SLURM need it

            slurm.require_empty_queue(run)
        yield


def show_dry_run(run: RunDir, config: Config, steps: Sequence[Step], console: Console) -> None:
    """Print, per step, what a local launch would do."""
    table = Table("step", "tasks", "would", title=f"Dry run: {run.path}", title_justify="left")
    upstream_runs = False  # a step whose input will change runs whole
    for step in steps:
        stage = make_stage(step, run, config)
        tasks = stage.tasks() if upstream_runs else stage.pending()
        upstream_runs = upstream_runs or bool(tasks)
        table.add_row(str(step), str(len(tasks)), "run" if tasks else "skip: done")
    console.print(table)
    console.print("Nothing was done.")
