"""Which signals ask a task to stop."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("before", "stops"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_a_lost_terminal_stops_a_task_unless_it_runs_under_nohup(before: str, stops: bool) -> None:
    program = (
        "import os, signal; from jobs.backends.stop import StopFlag\n"
        f"signal.signal(signal.SIGHUP, signal.{before})\n"  # what nohup does, or what it does not
        "stop = StopFlag().install(); os.kill(os.getpid(), signal.SIGHUP); raise SystemExit(stop())"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == stops
