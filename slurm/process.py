"""How a task's process is started and how it asks to be started again: the same on SLURM and on one machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h; a task's exit code for "asked to stop before the end; start me again"

# Run by the child before it becomes the task. The kernel then kills the task when the thread that started it ends, even if
# that was killed by SIGKILL: no orphan keeps running. Not a preexec_fn: that is unsafe where the parent has threads, and
# progress bars have. 1 is PR_SET_PDEATHSIG, 9 is SIGKILL. The comparison catches a parent that died before the call.
_BECOME = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "try: os.execvp(sys.argv[2], sys.argv[2:])\n"
    "except OSError as error: sys.exit(f'error: cannot start {sys.argv[2]}: {error.strerror}')\n"
)


def die_with_parent(command: Sequence[str]) -> list[str]:
    """A command that turns into the given one and is killed when this process ends, however it ends."""
    return [sys.executable, "-ISc", _BECOME, str(os.getpid()), *command]
