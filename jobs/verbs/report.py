"""``launch.py report``: write the report of what a run has so far."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from jobs.pipeline import make_stage
from jobs.run.layout import Step
from jobs.run.run import load_run


def write_report(run_dir: Path, console: Console) -> None:
    """Write 7_report, whether it is there already or not.

    Raises:
        UserError: the folder is not a run.
    """
    run, config = load_run(run_dir)
    run.done_file(Step("report")).unlink(missing_ok=True)
    make_stage(Step("report"), run, config).run(None, lambda: False)
    console.print(f"Report: {escape(str(run.report / 'index.html'))}")
