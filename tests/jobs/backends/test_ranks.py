"""The processes of a training on one machine find each other and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.process import REQUEUE
from tests.conftest import ROOT
from tests.jobs.backends.test_pool import alive, python, wait_until

LISTEN = """
    import os, signal, sys, time
    def save(number, frame):
        open(f"{sys.argv[1]}/{os.environ['RANK']}.saved", "w").close()
        sys.exit(75)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, save)
    with open(f"{sys.argv[1]}/{os.environ['RANK']}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, file.name.replace(".part", ".pid"))
    time.sleep(60)
"""


def start(count: int, command: list[str], grace: float = 20) -> "subprocess.Popen[str]":
    program = "import sys; from jobs.backends import ranks; ranks.GRACE_SECONDS = float(sys.argv.pop(1)); sys.exit(ranks.main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(grace), str(count), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def test_each_process_knows_its_rank_and_where_rank_0_listens() -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    process = start(3, python(f"import json, os; print(json.dumps([os.environ[n] for n in {names}]))"))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = {line[: line.index("[", 1)].strip() if line.count("[") > 1 else "": line for line in said.splitlines()}
    told = {prefix: json.loads(line[line.rindex("[") :]) for prefix, line in lines.items()}
    port = told[""][-1]
    assert told == {
        prefix: [str(rank), str(rank), "3", "3", "127.0.0.1", port] for rank, prefix in enumerate(("", "[1]", "[2]"))
    }
    assert 1024 < int(port) < 65536


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_reaches_every_rank_and_the_exit_code_asks_for_a_restart(number: signal.Signals, tmp_path: Path) -> None:
    process = start(2, python(LISTEN, tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    process.send_signal(number)
    assert process.wait(30) == REQUEUE
    assert len(list(tmp_path.glob("*.saved"))) == 2


def test_exit_code_and_last_line_are_those_of_the_rank_that_failed_first() -> None:
    program = """
        import os, sys, time
        if os.environ["RANK"] == "0":
            time.sleep(1)
            print("error: the connection was closed by the other")
            sys.exit(1)
        print("error: the image is broken")
        sys.exit(3)
    """
    process = start(2, python(program))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "[1] error: the image is broken\n" in said
    assert said.endswith("\nerror: the image is broken\n")


def test_a_rank_that_waits_for_a_dead_one_is_killed() -> None:
    program = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(4); time.sleep(60)"
    process = start(2, python(program), grace=0.5)
    started = time.monotonic()
    assert process.wait(30) == 4
    assert time.monotonic() - started < 20


def test_a_kill_of_one_rank_looks_like_a_kill_of_all(tmp_path: Path) -> None:
    """So that the local back end restarts the training, as it does with a task that the kernel killed for lack of memory."""
    process = start(2, python(LISTEN, tmp_path), grace=0.5)
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_kill_9_of_the_launcher_leaves_no_rank_behind(tmp_path: Path) -> None:
    process = start(2, python(LISTEN, tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(int(file.read_text())) for file in tmp_path.glob("*.pid")))
