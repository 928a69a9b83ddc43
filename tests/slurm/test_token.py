"""Whose jobs are in the queue: a run's own, not those of the run that it was copied from. squeue and scancel are scripts."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from jobs.backends import slurm as backend
from jobs.run.layout import RunDir
from slurm.chain import Chain, ChainFolder, StepPhase, StepState
from slurm.profile import Profile
from slurm.submit import StepWork, SubmittedJob
from tests.conftest import launch, launch_args, output, write_config


class FakeSlurm:
    """A queue of one user that holds the jobs named in a file, and notes what is cancelled."""

    def __init__(self, folder: Path) -> None:
        self.queue, self.cancelled = folder / "queue", folder / "cancelled"
        self.queue.write_text("")
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("squeue", f"cat '{self.queue}'")
        self.program("scancel", f"echo \"$@\" >> '{self.cancelled}'")

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def holds(self, token: str) -> None:
        self.queue.write_text(f"7_0|RUNNING|validate.{token}|None|n1\n8|PENDING|gate-validate.{token}|Dependency|\n")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands, found before any real ones."""
    (tmp_path / "slurm").mkdir()
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.programs}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.fixture
def submitted(queue: FakeSlurm, tmp_path: Path, catalogue: Path) -> tuple[RunDir, Path]:
    """A run with one of its steps in the queue, and its configuration."""
    config = write_config(tmp_path / "c.yaml", catalogue)
    assert launch(*launch_args(config, tmp_path / "run", "--stages", "prepare")).returncode == 0
    run = RunDir(tmp_path / "run")
    folder = backend.chain_folder(run)
    folder.write_chain(Chain("s1", folder.token(), [[WORK]], Profile()))
    write_step(folder, StepPhase.QUEUED)
    queue.holds(folder.token())
    return run, config


WORK = StepWork("validate", "validate", ["true"], ["true"], "logs", [0])


def write_step(folder: ChainFolder, phase: StepPhase) -> None:
    folder.write_step(StepState(WORK, [SubmittedJob("7", [0])], "8", 0.0, "s1", phase=phase))


def test_a_run_in_the_queue_is_launched_by_nothing_else(submitted: tuple[RunDir, Path]) -> None:
    run, config = submitted
    before = run.run_file.read_bytes()
    for command in (launch_args(config, run.path, "--set", "curate.seed=5"), ["report", run.path]):
        refused = launch(*command)
        assert refused.returncode == 2, output(refused)
        assert "already in SLURM's queue: validate (2)" in output(refused)
    assert run.run_file.read_bytes() == before


def test_a_queue_that_does_not_answer_counts_as_alive_until_the_chain_is_complete(
    submitted: tuple[RunDir, Path], queue: FakeSlurm
) -> None:
    run, config = submitted
    queue.program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    arguments = launch_args(config, run.path, "--stages", "prepare")
    refused = launch(*arguments)
    assert refused.returncode == 2 and "may be in SLURM's queue, which does not answer" in output(refused)
    write_step(backend.chain_folder(run), StepPhase.COMPLETE)
    done = launch(*arguments)
    assert done.returncode == 0, output(done)


def test_a_copied_run_neither_cancels_the_originals_jobs_nor_waits_for_them(
    submitted: tuple[RunDir, Path], queue: FakeSlurm, tmp_path: Path
) -> None:
    run, config = submitted
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    said = launch("cancel", copy.path)
    assert said.returncode == 0 and "copy: the jobs in the queue are those of the original" in output(said)
    assert not queue.cancelled.exists()
    assert backend.queue_counts(copy) is None
    done = launch(*launch_args(config, copy.path, "--stages", "prepare"))
    assert done.returncode == 0, output(done)
    assert backend.chain_folder(copy).token() != backend.chain_folder(run).token()


def test_a_moved_run_keeps_its_jobs(submitted: tuple[RunDir, Path], queue: FakeSlurm, tmp_path: Path) -> None:
    run, _ = submitted
    run.path.rename(tmp_path / "moved")
    assert backend.queue_counts(RunDir(tmp_path / "moved")) is not None
    said = launch("cancel", tmp_path / "moved")
    assert "Cancelled 2 jobs" in output(said)
    assert queue.cancelled.read_text() == "8 7\n"


def test_a_run_that_was_put_back_from_a_copy_keeps_its_jobs(submitted: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, _ = submitted
    token = backend.chain_folder(run).token()
    shutil.copytree(run.path, tmp_path / "backup")
    run.path.rename(tmp_path / "lost")
    shutil.copytree(tmp_path / "backup", run.path)
    assert backend.chain_folder(run).token() == token


def test_tokens_that_are_made_in_one_second_differ(tmp_path: Path) -> None:
    tokens = [ChainFolder(tmp_path / f"run-{number}" / "slurm").token() for number in range(100)]
    assert len(set(tokens)) == len(tokens)
