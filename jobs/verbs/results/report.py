"""``launch.py report``: write the report of what a run has so far."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from data_prep.outcomes import UserError
from jobs.pipeline import make_stage
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run
from jobs.stages.report import Report
from jobs.verbs.launch import sole_writer


def write_report(run_dir: Path, to: Path | None, console: Console) -> None:
    """Write 8_report, whether it is there already or not; with ``to`` another folder, and nothing in the run.

    Raises:
        UserError: the folder is not a run, or cannot be written.
    """
    run = RunDir(run_dir.resolve()).require()
    if to is not None:
        _write_to(run, to)
    else:
        with sole_writer(run):
            run, config = load_run(run.path)
            run.done_file(Step("report")).unlink(missing_ok=True)
            make_stage(Step("report"), run, config).run(None, lambda: False)
    console.print(f"Report: {escape(str((to or run.report) / 'index.html'))}")


def _write_to(run: RunDir, to: Path) -> None:
    stage = make_stage(Step("report"), *load_run(run.path))
    assert isinstance(stage, Report)
    try:
        to.mkdir(parents=True, exist_ok=True)
        stage.write(to)
    except OSError as error:
        raise UserError(f"Cannot write the report into {to}: {error.strerror}.") from error
