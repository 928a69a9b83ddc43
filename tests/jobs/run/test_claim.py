"""Launches of one run at the same time, as real processes: exactly one starts, also from machines that see only its files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.files import read_json, write_json
from data_prep.outcomes import UserError
from jobs.run import claim
from jobs.run.claim import claimed
from jobs.run.layout import RunDir
from tests.conftest import ROOT, environment, heed_signals, launch, launch_args, launch_command, output, write_config

# Begins a run if need be, and holds it for as long as its input is open; waits for the moment given as a file, so that several start together.
HOLD = """
import sys, time
from pathlib import Path
from data_prep.outcomes import UserError
from jobs.run.claim import claimed
from jobs.run.layout import RunDir
start = Path(sys.argv[2])
print("ready", flush=True)
while not start.exists(): time.sleep(0.0005)
try:
    with claimed(RunDir(Path(sys.argv[1]))):
        Path(sys.argv[1], "run.json").write_text("{}")
        print("claimed", flush=True)
        sys.stdin.read()
except UserError as error:
    print(f"refused: {error}", flush=True)
"""


def can_name_hosts() -> bool:
    """Whether this user can give a process a host name of its own."""
    return (
        bool(shutil.which("unshare"))
        and subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode == 0
    )


def on_host(name: str, command: list[str]) -> list[str]:
    """A command as it runs on a machine of that name."""
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]


needs_hosts = pytest.mark.skipif(not can_name_hosts(), reason="needs the right to make a UTS namespace (root)")


class Holders:
    """Processes that claim one run at the same moment."""

    def __init__(self, run: Path, start: Path, hosts: list[str | None]) -> None:
        self.processes = []
        for host in hosts:
            command = [sys.executable, "-c", HOLD, str(run), str(start)]
            self.processes.append(
                subprocess.Popen(
                    on_host(host, command) if host else command,
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        assert [self.line(process) for process in self.processes] == ["ready"] * len(hosts)
        start.touch()

    def line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def end(self) -> None:
        for process in self.processes:
            process.communicate("")


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.02)


def holder_of(run: Path) -> int | None:
    """The process that holds a run."""
    notes = [read_json(note) or {} for note in sorted(run.glob("claims/*/holder.json"))]
    return notes[-1].get("pid") if notes else None


@pytest.mark.parametrize("hosts", [[None, None, None], pytest.param(["login1", "login2", "login3"], marks=needs_hosts)])
def test_of_commands_that_claim_a_run_at_the_same_moment_exactly_one_gets_it(
    tmp_path: Path, hosts: list[str | None]
) -> None:
    for number in range(20):
        holders = Holders(tmp_path / "run", tmp_path / f"start-{number}", hosts)
        said = [holders.line(process) for process in holders.processes]
        holders.end()
        assert said.count("claimed") == 1, said
        holder = hosts[said.index("claimed")]
        refused = next(line for line in said if line != "claimed")
        assert f"process {holders.processes[said.index('claimed')].pid}" in refused or holder
        assert re.search(r"in use by process \d+ on \S+ since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", refused), refused
        assert "Wait for it, or stop it: kill " in refused
        if holder:
            assert f" on {holder} since" in refused and "last sign of life" in refused


@pytest.fixture
def left_by_a_kill(tmp_path: Path) -> Iterator[RunDir]:
    """A run whose claim was held by a process on another machine that was killed."""
    holders = Holders(tmp_path / "run", tmp_path / "start", ["login1"])
    assert holders.line(holders.processes[0]) == "claimed"
    holders.processes[0].kill()
    holders.processes[0].wait()
    yield RunDir(tmp_path / "run")


@needs_hosts
def test_a_dead_claim_of_another_machine_is_taken_over_by_exactly_one(left_by_a_kill: RunDir, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"on login1 since .* the same command works 90 s after it"),
        claimed(left_by_a_kill),
    ):
        pass
    for number in range(20):
        last = sorted(left_by_a_kill.claims.iterdir())[-1]
        heartbeat, released = last / "heartbeat", last / "released.json"
        if released.exists():
            released.rename(last / "holder.json")  # as a kill leaves it
        silent = heartbeat.stat().st_mtime - 2 * claim.DEAD_AFTER_SECONDS
        os.utime(heartbeat, (silent, silent))
        holders = Holders(left_by_a_kill.path, tmp_path / f"again-{number}", ["login2", "login3", "login4"])
        said = [holders.line(process) for process in holders.processes]
        holders.end()
        assert said.count("claimed") == 1, said


@needs_hosts
def test_no_clock_of_a_machine_decides_whether_a_claim_is_dead(
    left_by_a_kill: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)  # a contender whose clock is decades ahead
    with pytest.raises(UserError, match="on login1"), claimed(left_by_a_kill):
        pass


@needs_hosts
def test_a_living_holder_is_never_taken_for_dead_however_long_it_runs(tmp_path: Path) -> None:
    short = HOLD.replace("start = ", "import jobs.run.claim as c; c.HEARTBEAT_SECONDS = 0.05; start = ")
    (tmp_path / "go").touch()
    command = on_host("login1", [sys.executable, "-c", short, str(tmp_path / "run"), str(tmp_path / "go")])
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        heartbeat = tmp_path / "run" / "claims" / "00001" / "heartbeat"
        wait_for(heartbeat.exists)
        os.utime(heartbeat, (0, 0))
        wait_for(lambda: heartbeat.stat().st_mtime > 0)
        with pytest.raises(UserError, match="on login1"), claimed(RunDir(tmp_path / "run")):
            pass
    finally:
        holder.communicate("")


def test_a_holder_that_was_taken_for_dead_stops_when_it_wakes(tmp_path: Path) -> None:
    short = HOLD.replace("start = ", "import jobs.run.claim as c; c.HEARTBEAT_SECONDS = 0.05; start = ")
    (tmp_path / "go").touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", short, str(tmp_path / "run"), str(tmp_path / "go")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "run" / "claims" / "00001" / "holder.json").exists)
    (tmp_path / "run" / "claims" / "00002").mkdir()
    assert holder.wait(timeout=30) == -signal.SIGTERM
    assert holder.stderr is not None and "another command took this run over" in holder.stderr.read()


def test_killed_the_same_command_works_at_once_on_the_same_machine(tmp_path: Path) -> None:
    for number in range(3):
        holders = Holders(tmp_path / "run", tmp_path / f"start-{number}", [None])
        assert holders.line(holders.processes[0]) == "claimed"
        holders.processes[0].kill()
        holders.processes[0].wait()
    with claimed(RunDir(tmp_path / "run")):
        pass


def test_a_reused_process_id_does_not_hold_a_claim(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with claimed(run):
        run.run_file.write_text("{}")
    note = read_json(run.claims / "00001" / "released.json") or {}
    write_json(run.claims / "00001" / "holder.json", note | {"started": "1"})
    with claimed(run):
        pass


def test_a_copy_of_a_run_is_not_held_by_what_holds_the_original_but_a_moved_one_is(tmp_path: Path) -> None:
    with claimed(RunDir(tmp_path / "run")):
        (tmp_path / "run" / "run.json").write_text("{}")
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with claimed(RunDir(tmp_path / "copy")):
            pass
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(UserError, match=f"{tmp_path}/moved is in use"), claimed(RunDir(tmp_path / "moved")):
            pass


def test_a_folder_that_is_no_run_is_left_as_it_was(tmp_path: Path) -> None:
    with claimed(RunDir(tmp_path / "refused")):
        pass
    assert not (tmp_path / "refused").exists()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not a run directory"), claimed(RunDir(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("hosts", [(None, None), pytest.param(("login1", "login2"), marks=needs_hosts)])
def test_of_two_launches_in_the_same_second_one_does_the_work(
    tmp_path: Path, catalogue: Path, hosts: tuple[str | None, str | None]
) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue)
    for number in range(3):
        command = launch_command(*launch_args(config, tmp_path / f"run-{number}", "--stages", "prepare"))
        both = [
            subprocess.Popen(
                on_host(host, command) if host else command,
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for host in hosts
        ]
        said = [process.communicate(timeout=120)[0] for process in both]
        record = read_json(tmp_path / f"run-{number}" / "run.json") or {}
        codes = sorted(process.returncode for process in both)
        # The second may have started when the first had ended already: then it found everything done.
        assert codes == [0, 2] or (codes == [0, 0] and "done already" in "".join(said)), said
        assert len(record["launches"]) == codes.count(0)


def test_after_ctrl_c_and_after_a_kill_the_next_launch_starts_at_once(tmp_path: Path, catalogue: Path) -> None:
    stand_in = {"answers": str(catalogue / "facts.jsonl"), "latency": 1.0}
    config = write_config(tmp_path / "c.yaml", catalogue, generate={"stand_in": stand_in, "concurrency": 1})
    arguments = launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate")
    for number in (signal.SIGINT, signal.SIGKILL):
        first = subprocess.Popen(
            launch_command(*arguments),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            preexec_fn=heed_signals,
        )
        wait_for(lambda held=first.pid: holder_of(tmp_path / "run") == held)
        refused = launch(*arguments, "--set", "curate.seed=5")
        assert refused.returncode == 2 and f"process {first.pid} on" in output(refused), output(refused)
        assert launch("status", tmp_path / "run").returncode == 0, "reading needs no claim"
        first.send_signal(number)
        first.wait(timeout=60)
    done = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare"))
    assert done.returncode == 0, output(done)
