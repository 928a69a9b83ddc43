"""Run by SLURM after the tasks of a step have ended: decides from the run's files how the chain goes on.

::

    python -m jobs.backends.check_step RUN_DIR validate
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from jobs.backends.slurm import chain_folder, keep_account
from jobs.pipeline import make_stage
from jobs.run.layout import Step
from jobs.run.run import load_run
from slurm.gate import run_gate


def main(run_dir: Path, step: Step) -> int:
    """The gate's exit code: 0 where the next steps may start."""
    run, config = load_run(run_dir)
    stage = make_stage(step, run, config)
    with suppress(Exception):  # an account that is missing is no reason to stop a run
        keep_account(run, step)
    return run_gate(chain_folder(run), str(step), stage.pending, lambda: stage.status().all_items_failed())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Step.parse(sys.argv[2])))
