"""One task: a shard of a sharded stage or several, or a stage that is one job. What every back end runs.

::

    python -m jobs.backends.task RUN_DIR validate --shard 7
    python -m jobs.backends.task RUN_DIR validate --shard 7 --shard 8
    python -m jobs.backends.task RUN_DIR train:blip

Exit codes: 0 nothing is left to do; 75 asked to stop, start me again; 1 failed (the last line that starts with ``error:``
says why).
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from data_prep.outcomes import Interrupted, UserError
from jobs.backends.meter import Meter
from jobs.backends.stop import StopFlag
from jobs.pipeline import make_stage
from jobs.run.layout import Step
from jobs.run.run import load_run
from slurm.process import REQUEUE


def run_task(run_dir: Path, step: Step, shard: int | None, stop: StopFlag) -> int:
    """Do one task's work; the exit code.

    Raises:
        UserError: something that the user can fix.
    """
    run, config = load_run(run_dir)
    stage = make_stage(step, run, config)
    with Meter(run, step, shard, needs_gpu=stage.needs_gpu):
        result = stage.run(shard, stop)
    print(result.summary)
    return REQUEUE if result.requeue else 0


def main() -> int:
    """Parse the command line, run the task, say in one line how it ended."""
    parser = argparse.ArgumentParser(prog="python -m jobs.backends.task", description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("step", type=Step.parse, help="a stage; train and evaluate with their model: train:blip")
    parser.add_argument("--shard", type=int, action="append", help="one after the other, where it is repeated")
    arguments = parser.parse_args()
    stop = StopFlag().install()
    codes = set()
    for shard in arguments.shard or [None]:
        codes.add(_exit_code(arguments.run_dir, arguments.step, shard, stop))
        if REQUEUE in codes:
            return REQUEUE
    return max(codes)


def _exit_code(run_dir: Path, step: Step, shard: int | None, stop: StopFlag) -> int:
    try:
        return run_task(run_dir, step, shard, stop)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 1
    except Interrupted as stopped:
        print(f"stopped: {stopped}", flush=True)
        return REQUEUE
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
