"""``launch.py --cluster local|slurm``: resolve the request, check it, hand it to a back end. And ``launch.py cancel``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.generate import models
from data_prep.outcomes import UserError
from jobs.backends.local import run_local
from jobs.config import DEFAULT_CONFIG, Config, load_config
from jobs.options import Cluster, LaunchRequest
from jobs.pipeline import make_stage, parse_stages, steps_of
from jobs.run.claim import living_launcher
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run, open_run


def launch(request: LaunchRequest, console: Console) -> int:
    """Run the pipeline; the exit code.

    Raises:
        UserError: wrong usage or configuration.
    """
    stages = parse_stages(request.stages)
    config, run_dir = resolve(request.config, request.run_dir, request.overrides or (), request.shards)
    steps = steps_of(config, stages)
    if not steps:
        raise UserError(f"{', '.join(stages)}: data.dataset_csv takes their place. Start with --stages curate.")
    run = RunDir(run_dir.resolve())
    if request.cluster is Cluster.slurm:
        from jobs.backends import slurm  # only runs on SLURM need it

        profile = slurm.read_profile(request.profile or slurm.DEFAULT_PROFILE)
    if request.dry_run:
        if request.cluster is Cluster.slurm:
            slurm.show_scripts(run, config, steps, profile, console)
        else:
            show_dry_run(run, config, steps, console)
        return 0
    # Before anything of a run that is under way, or was made under another configuration, is changed.
    require_alone(run)
    for step in steps:
        make_stage(step, run, config).check_settings()
    run, notes = open_run(run_dir, config, sys.argv)
    console.print(f"Run directory: {escape(str(run.path))}", style="bold")
    if config.generate.stand_in is None and any(step.stage == "generate" for step in steps):
        notes += models.notices(config.generate.model, models.today())
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


def resolve(
    path: Path | None, run_dir: Path | None, overrides: Sequence[str], shards: int | None = None
) -> tuple[Config, Path]:
    """The configuration and the run's folder that the options name.

    Raises:
        UserError: the configuration is wrong.
    """
    path = path or DEFAULT_CONFIG
    changes = list(overrides)
    if shards is not None:
        changes += [f"{stage}.shards={shards}" for stage in ("validate", "generate", "evaluate")]
    return load_config(path, changes), run_dir or Path("runs") / path.stem


def require_alone(run: RunDir) -> None:
    """A run has one launcher or one chain of jobs at a time.

    Raises:
        UserError: another local launch drives it, or jobs of it are in SLURM's queue.
    """
    if other := living_launcher(run):
        raise UserError(
            f"{run.path} is being driven by another launch.py (process {other.pid}). Wait for it, or stop it: kill {other.pid}"
        )
    if not run.slurm.is_dir():
        return
    from jobs.backends import slurm  # only runs on SLURM need it

    if queued := slurm.queue_counts(run):
        listed = ", ".join(f"{step} ({states.total()})" for step, states in queued.items())
        raise UserError(
            f"This run is in SLURM's queue already: {listed}. Wait for it, or cancel it: launch.py cancel RUN_DIR"
        )


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
