"""Keys exist only in the environment: in no file of a run, on no command line and in no output."""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.demo.catalogue import render
from data_prep.generate.clients.base import known_generators
from tests.chaos.secrets import Watch, leaks, leaks_in_files
from tests.conftest import launch, launch_args, output, write_config

GOOD, REJECTED = "AIzaSyGood-recognizable/key+0123456789-a42", "AIzaSyBad_-recognizable_key_9876543210_b13"
KEYS = {"GEMINI_API_KEY": GOOD, "SECOND_KEY": REJECTED}
FAULTS = {"status_429": 0.1, "status_503": 0.1, "html": 0.1, "break_off": 0.1, "hang": 0.05, "four_pairs": 0.1}


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode(),
        base64.b64encode(f"x={GOOD}&y".encode()),
        base64.urlsafe_b64encode(f"key {GOOD} and more".encode()),
        base64.b64encode(GOOD.encode()),
        GOOD.encode().hex().encode(),
    ],
)
def test_a_key_would_be_found(tmp_path: Path, text: bytes) -> None:
    """Proves that the tests below can fail."""
    assert leaks(b"before" + text + b"after", [REJECTED, GOOD])
    (tmp_path / "plain").write_bytes(text)
    (tmp_path / "packed").write_bytes(gzip.compress(text))
    assert {line.partition(": ")[0] for line in leaks_in_files(tmp_path, [GOOD])} == {
        str(tmp_path / "plain"),
        str(tmp_path / "packed"),
    }


def test_a_key_on_a_command_line_would_be_found() -> None:
    """Uses a key of its own, because the command lines of the whole machine are searched."""
    with Watch(["not-a-key-0123456789"]) as watch:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)", "not-a-key-0123456789"], check=True)
    assert watch.leaks


@contextmanager
def stand_in(answers: Path, log: Path, *keys: str) -> Iterator[str]:
    """A stand-in with faults that accepts only these keys. It gets them through a script, because command lines are searched."""
    code = (
        "import os, sys, pathlib\n"
        "from data_prep.stand_in import StandIn, StandInOptions\n"
        f"faults = {FAULTS!r}\n"
        "keys = os.environ['STAND_IN_KEYS'].split()\n"
        "answers, log = map(pathlib.Path, sys.argv[1:])\n"
        "options = StandInOptions(faults=faults, keys=keys, retry_delay=0.1, latency=0.05)\n"
        "server = StandIn(answers, options, log=log)\n"
        "print(server.url, flush=True)\n"
        "server.serve_forever()\n"
    )
    command = [sys.executable, "-c", code, str(answers), str(log)]
    environment = {**os.environ, "STAND_IN_KEYS": " ".join(keys)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("generator", known_generators())
def test_a_key_is_in_no_file_no_command_line_and_no_output(tmp_path: Path, generator: str) -> None:
    catalogue = tmp_path / "catalogue"
    render(catalogue, products=12, seed=3)
    said: list[str] = []

    def run(*arguments: str | Path) -> int:
        done = launch(*arguments, **KEYS)
        said.append(output(done))
        return done.returncode

    projects = [{"name": "mine", "keys": list(KEYS)}]
    sections: dict[str, object] = {"projects": projects, "generator": generator, "timeout": 2.0, "max_dollars": 5.0}
    data = tmp_path / "data"
    data.mkdir()
    run_dir, answers = data / "run", catalogue / "facts.jsonl"
    with Watch(KEYS.values()) as watch:
        with stand_in(answers, data / "refuses.jsonl", "neither") as url:
            config = write_config(data / "config.yaml", catalogue, generate={"endpoint": url, **sections})
            options = [*launch_args(config, run_dir), "--stages", "prepare,validate,generate,curate"]
            assert run(*options) == 1
            run("doctor", "--config", config, "--run-dir", run_dir, "--cluster", "local")
        # An unexpected crash with a traceback: a file where a folder must be.
        (run_dir / "ledger").rename(data / "ledger")
        (run_dir / "ledger").touch()
        with stand_in(answers, data / "takes.jsonl", GOOD) as url:
            write_config(config, catalogue, generate={"endpoint": url, **sections})
            assert run(*options) == 1
            (run_dir / "ledger").unlink()
            (data / "ledger").rename(run_dir / "ledger")
            assert run(*options) == 0
            assert run("status", run_dir) == 0
            assert run("plan", "--config", config) == 0
    logs = "".join(path.read_text() for path in (run_dir / "logs").rglob("*.log"))
    assert "Traceback" in logs, "the crash must leave a traceback"
    assert f"The key ending in {REJECTED[-4:]} of project mine was rejected" in logs
    assert f"The key ending in {GOOD[-4:]} of project mine was rejected" in logs
    assert any("jobs.backends.task" in line and " generate" in line for line in watch.seen)
    assert watch.leaks == []
    assert leaks("".join(said).encode(), KEYS.values()) == []
    assert leaks_in_files(data, KEYS.values()) == []
