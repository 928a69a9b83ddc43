"""Ctrl-C ends any command with its words; a second one ends it at once and says what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.conftest import ROOT, environment, heed_signals, launch_args, launch_command, write_config


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts one."""
    return subprocess.Popen(
        launch_command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 90
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_lost(tmp_path: Path, catalogue: Path) -> None:
    answers = {"answers": str(catalogue / "facts.jsonl"), "latency": 60.0}
    config = write_config(tmp_path / "c.yaml", catalogue, generate={"stand_in": answers})
    process = start(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate"))
    wait_for(tmp_path / "run/ledger/spending")  # of requests that are under way
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None, "the first one waits for replies"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Stopped generate at once" in said and "may be paid for" in said
    assert "Interrupted." in said and "Traceback" not in said
    left = [one for one in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path / "run") in text_of(one)]
    assert not left, "nothing lives on"


def text_of(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_ctrl_c_ends_a_command_that_runs_no_tasks_with_its_words(tmp_path: Path) -> None:
    process = start("demo", "--run-dir", tmp_path / "demo")
    wait_for(tmp_path / "demo-catalogue")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Interrupted. What was finished is kept" in said and "Traceback" not in said
