"""Being asked to stop: a time limit, a preemption, Ctrl-C. The work in hand is finished and written, then the task ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

# USR2 is what submitit and our sbatch scripts ask for (USR1 collides with NCCL); TERM is preemption; INT is Ctrl-C.
# HUP is a terminal that was closed or a connection that was lost.
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class StopFlag:
    """Set by the first signal; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> StopFlag:
        """Listen for the signals that ask a task to stop. Only possible in the main thread."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # under nohup the lost terminal does not matter
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:  # nobody reads on; writing to a terminal that is gone would end the process
            with contextlib.suppress(OSError):
                for stream in (sys.stdout, sys.stderr):
                    if stream.isatty():
                        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if self.signal is None:
            print(
                f"{signal.Signals(number).name}: finishing what is in hand, then stopping (Ctrl-C again: at once)",
                flush=True,
            )
        self.signal = number

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signal is not None
