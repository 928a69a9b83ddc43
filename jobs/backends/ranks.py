"""One command in several processes of this machine that find each other: what srun is to a training on a cluster.

::

    python -m jobs.backends.ranks 2 python -m jobs.backends.task runs/demo train:blip

Each process is told who it is by the variables that torch.distributed reads, as in the SLURM jobs. Not torchrun: that answers a
request to stop by ending its workers as failed, and here each of them saves first and ends with 75. The exit code is that of
the process which failed first, else 75 if one was asked to stop, else 0.
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

from jobs.backends.pool import POLL_SECONDS, REQUEUE, dying_with_parent

GRACE = 20.0  # seconds for the others after one has failed: they wait for it in a collective operation
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Rank:
    """One of the processes; what it prints is passed on line by line, with its number where that is not 0."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.prefix = f"[{number}] " if number else ""
        self.error = ""  # the last line in which it said why it failed
        self.process = subprocess.Popen(
            dying_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environment, "RANK": str(number), "LOCAL_RANK": str(number)},
        )
        self.reader = threading.Thread(target=self._pass_on)
        self.reader.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("error: "):
                self.error = line
            sys.stdout.write(self.prefix + line)
            sys.stdout.flush()


def run_ranks(count: int, command: Sequence[str], grace: float = GRACE) -> int:
    """Run a command in ``count`` processes and wait for all, for ``grace`` seconds at most once one has failed.

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
    ended: list[Rank] = []
    failed_at: float | None = None
    while len(ended) < count:
        time.sleep(POLL_SECONDS)
        for rank in ranks:
            if rank in ended or (code := rank.process.poll()) is None:
                continue
            ended.append(rank)
            if code not in (0, REQUEUE) and failed_at is None:
                failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > grace:
            for rank in ranks:
                rank.process.kill()
    for rank in ranks:
        rank.reader.join()
    codes = [rank.process.returncode for rank in ended]
    first = next((rank for rank in ended if rank.process.returncode not in (0, REQUEUE)), None)
    if first is None:
        return REQUEUE if REQUEUE in codes else 0
    if first.error:
        print(first.error, end="", flush=True)  # last, where readers of logs look: the others only miss that process
    return int(first.process.returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run the command of the command line; die of the signal that one of its processes died of."""
    code = run_ranks(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        if -code in SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
