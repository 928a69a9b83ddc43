"""Run by SLURM after the tasks of a step have ended: decides from the run's files how the chain goes on.

::

    python -m jobs.gate RUN_DIR validate
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.records import UserError
from jobs.pipeline import load_run, make_stage
from jobs.rundir import Step
from jobs.slurm_backend import chain_folder, nothing_came_of_it, pending
from slurm.chain import run_gate


def main(run_dir: Path, step: Step) -> int:
    """The gate's exit code: 0 where the next steps may start."""
    run, config = load_run(run_dir)
    stage = make_stage(step, run, config)

    def left() -> list[int | None]:
        try:
            return pending(stage)
        except UserError as error:  # an input is missing or was changed: the tasks have said so, too
            print(f"error: {error}")
            return [None]

    return run_gate(chain_folder(run), str(step), left, lambda: nothing_came_of_it(run, config, step))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Step.parse(sys.argv[2])))
