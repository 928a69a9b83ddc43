"""Runs one command in several processes of this machine that form one torch.distributed group, as srun does on a cluster.

::

    python -m jobs.backends.ranks 2 python -m jobs.backends.task runs/demo train:blip

Each process learns its rank from the variables that torch.distributed reads, as in the SLURM jobs. Not torchrun: asked to
stop, it reports its workers as failed, while here each rank saves first and exits with `REQUEUE`. The exit code is that of the
rank that failed first, else `REQUEUE` if one was interrupted, else 0.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from jobs.backends.pool import POLL_SECONDS
from slurm.process import REQUEUE, die_with_parent

GRACE_SECONDS = 20.0  # for the other ranks once one has failed: they may hang in a collective operation, waiting for it
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Rank:
    """One of the processes. Its output is passed on line by line, prefixed with its number unless that is 0."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.prefix = f"[{number}] " if number else ""
        self.error = ""  # its last line that starts with "error: "
        self.process = subprocess.Popen(
            die_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environment, "RANK": str(number), "LOCAL_RANK": str(number)},
        )
        # A thread per rank: a rank whose pipe is full would block, and the others would wait for it.
        self.reader = threading.Thread(target=self._pass_on)
        self.reader.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("error: "):
                self.error = line
            sys.stdout.write(self.prefix + line)
            sys.stdout.flush()


def run_ranks(count: int, command: Sequence[str]) -> int:
    """Run a command in ``count`` processes and wait for all; `GRACE_SECONDS` after one has failed, kill the others.

    Returns:
        The exit code; negative for a signal, as in subprocess.
    """
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    ranks = [Rank(number, command, shared) for number in range(count)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    failed: Rank | None = None  # the first one
    deadline = float("inf")
    while True:
        codes = [rank.process.poll() for rank in ranks]
        if failed is None:
            failed = next(
                (rank for rank, code in zip(ranks, codes, strict=True) if code not in (None, 0, REQUEUE)), None
            )
            deadline = time.monotonic() + GRACE_SECONDS if failed else deadline
        if None not in codes:
            break
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.process.kill()
        time.sleep(POLL_SECONDS)
    for rank in ranks:
        rank.reader.join()
    if failed is None:
        return REQUEUE if REQUEUE in codes else 0
    if failed.error:
        # Repeated as the last line, which log readers look at: the other ranks only report a lost connection.
        print(failed.error, end="", flush=True)
    return int(failed.process.returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run the command of the command line; die of the signal that the failed rank died of."""
    code = run_ranks(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        # The local back end restarts tasks that a signal killed, and tells them by their exit code.
        if -code in SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
