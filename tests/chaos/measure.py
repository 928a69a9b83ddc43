"""Measures one task: its peak memory according to the kernel, and its seconds.

Linux counts the parent's memory at fork time towards a process's peak, and a test can hold a lot. So a small process in between
starts the task.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, environment

_MEASURE = (
    "import os, subprocess, sys, time\n"
    "began = time.monotonic()\n"
    "process = subprocess.Popen(sys.argv[1:], stdout=2)\n"
    "_, status, usage = os.wait4(process.pid, 0)\n"
    "print(usage.ru_maxrss // 1024, time.monotonic() - began)\n"
    "os._exit(os.waitstatus_to_exitcode(status))\n"
)


def measured(*arguments: str) -> tuple[int, float, str]:
    """Run a Python command; return its peak memory in MB, its seconds and its output.

    Raises:
        AssertionError: the command failed.
    """
    done = subprocess.run(
        [sys.executable, "-ISuc", _MEASURE, sys.executable, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    megabytes, seconds = done.stdout.split()
    return int(megabytes), float(seconds), done.stderr


def measured_task(run: Path, *arguments: str) -> tuple[int, float, str]:
    """Measure a task of a run."""
    return measured("-m", "jobs.backends.task", str(run), *arguments)
