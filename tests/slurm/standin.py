"""A small pipeline that behaves like the real one, for tests of what SLURM does to jobs.

Every shard has ITEMS items. A task writes one line ``item attempt`` per item into its attempt's own file and skips recorded
items. On TERM or USR2 it finishes the current item and exits with `REQUEUE`. A file ``faults/<step>-<shard>`` holds a Python
statement that the task runs once.

::

    python -m tests.slurm.standin task FOLDER STEP [--shard N]
    python -m tests.slurm.standin gate FOLDER STEP
"""

import argparse
import os
import signal
import sys
import time
import uuid
from pathlib import Path

from slurm.chain import ChainFolder
from slurm.gate import run_gate
from slurm.process import REQUEUE
from slurm.submit import StepWork

ITEMS = 5
RENDEZVOUS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES",
    "SLURMD_NODENAME",
)
ROOT = Path(__file__).resolve().parents[2]


def work(folder: Path, name: str, shards: int | None, after: list[str], distributed: bool = False) -> StepWork:
    """A step of the small pipeline."""
    command = [sys.executable, "-m", "tests.slurm.standin"]
    return StepWork(
        name=name,
        stage=name.partition(":")[0],
        command=[*command, "task", str(folder), name],
        gate=[*command, "gate", str(folder), name],
        logs=str(folder / "logs" / name),
        shards=None if shards is None else list(range(shards)),
        after=after,
        distributed=distributed,
    )


def record_folder(folder: Path, step: str, shard: int | None) -> Path:
    return folder / "records" / step / ("task" if shard is None else str(shard))


def records(folder: Path, step: str, shard: int | None) -> list[str]:
    """The items with a complete line in any attempt's file, sorted, duplicates included."""
    found = []
    for file in record_folder(folder, step, shard).glob("*.txt"):
        found += [line.split()[0] for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return sorted(found)


def pending(folder: Path, step: str, shards: list[int] | None) -> list[int | None]:
    return [
        shard for shard in (shards if shards is not None else [None]) if len(set(records(folder, step, shard))) < ITEMS
    ]


def task(folder: Path, step: str, shard: int | None) -> int:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: asked.append(number))
    fault = folder / "faults" / f"{step}-{shard}"
    attempt = uuid.uuid4().hex[:6]
    out = record_folder(folder, step, shard)
    out.mkdir(parents=True, exist_ok=True)
    (folder / "attempts").mkdir(exist_ok=True)
    (folder / "attempts" / f"{step}-{shard}-{attempt}").write_text(
        " ".join(os.environ.get(name, "-") for name in RENDEZVOUS)
    )
    seconds = float((folder / "seconds").read_text()) if (folder / "seconds").exists() else 0.0
    done = set(records(folder, step, shard))
    with (out / f"{attempt}.txt").open("a") as file:
        for item in range(ITEMS):
            if asked:
                return REQUEUE
            if str(item) in done:
                continue
            time.sleep(seconds)
            file.write(f"{item} {attempt}\n")
            file.flush()
            if item == 1 and fault.exists():
                statement = fault.read_text()
                if not statement.startswith("#always"):
                    fault.unlink()
                exec(statement)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["task", "gate"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("step")
    parser.add_argument("--shard", type=int, action="append")
    arguments = parser.parse_args()
    if arguments.verb == "task":
        codes = [task(arguments.folder, arguments.step, shard) for shard in arguments.shard or [None]]
        return REQUEUE if REQUEUE in codes else max(codes)
    chain = ChainFolder(arguments.folder / "slurm")

    def left() -> list[int | None]:
        (folder := arguments.folder / "gates").mkdir(exist_ok=True)
        (folder / f"{arguments.step}-{os.environ['SLURM_JOB_ID']}").touch()
        state = chain.step(arguments.step)
        assert state is not None
        return pending(arguments.folder, arguments.step, state.work.shards)

    return run_gate(chain, arguments.step, left)


if __name__ == "__main__":
    sys.exit(main())
