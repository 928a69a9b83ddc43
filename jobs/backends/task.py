"""One task: a shard of a sharded stage, or a stage that is one job. What every backend runs.

::

    python -m jobs.backends.task RUN_DIR validate --shard 7
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
from jobs.backends.stop import REQUEUE, StopFlag
from jobs.pipeline import make_stage
from jobs.run.layout import Step
from jobs.run.run import load_run
from jobs.shards.loop import freeze_shards, frozen_shards, run_shard
from jobs.stages.base import ShardedStage, SingleStage


def run_task(run_dir: Path, step: Step, shard: int | None, stop: StopFlag) -> int:
    """Do one task's work; the exit code.

    Raises:
        UserError: something that the user can mend.
    """
    run, config = load_run(run_dir)
    stage = make_stage(step, run, config)
    stage.stopping = stop
    if isinstance(stage, SingleStage):
        if stage.complete():
            print(f"{step}: nothing to do")
            return 0
        outcome = stage.execute_and_mark()
        print(f"{step}: " + ", ".join(f"{count:,} {name}" for name, count in outcome.counts.items()))
        return 0
    assert isinstance(stage, ShardedStage)
    work = stage.work()
    shards = frozen_shards(next(iter(work.stores.values())))
    if shards is None:
        shards = stage.shards()
        for store in work.stores.values():
            freeze_shards(store, shards)
    if shard is None or not 0 <= shard < shards:
        raise UserError(f"{step} has shards 0 to {shards - 1}: --shard {shard} is none of them.")
    result = run_shard(work, shard, shards, stop)
    print(
        f"{step} shard {shard}: {result.items:,} items = {result.done:,} done + {result.failed:,} failed "
        f"+ {result.remaining:,} remaining"
    )
    if result.remaining == 0:
        return 0
    if result.stopped:
        return REQUEUE
    raise UserError(
        f"{step} shard {shard} ended with {result.remaining:,} items that were not tried: see the lines above."
    )


def main() -> int:
    """Parse the command line, run the task, say in one line how it ended."""
    parser = argparse.ArgumentParser(prog="python -m jobs.backends.task", description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("step", type=Step.parse, help="a stage, and for train and evaluate its model: train:blip")
    parser.add_argument("--shard", type=int)
    arguments = parser.parse_args()
    stop = StopFlag().install()
    try:
        return run_task(arguments.run_dir, arguments.step, arguments.shard, stop)
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
