"""``launch.py cancel``: take a run's jobs out of SLURM's queue."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from jobs.run.run import load_run


def cancel(run_dir: Path, console: Console) -> int:
    """Cancel a run's jobs, and no others; the exit code.

    Raises:
        UserError: the folder is not a run, or SLURM does not answer.
    """
    run, _ = load_run(run_dir)
    from jobs.backends import slurm  # only runs on SLURM need it

    return slurm.cancel(run, console)
