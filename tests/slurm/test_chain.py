"""The gate's decisions that need no cluster."""

import os
import time
from pathlib import Path

import pytest

from slurm.chain import COMPLETE, STOPPED, ChainFolder, StepState, after_jobs, submit_chain
from slurm.gate import run_gate
from slurm.profile import Profile, SlurmError
from slurm.submit import StepWork, Submitted


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChainFolder:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    folder = ChainFolder(tmp_path / "slurm")
    profile = Profile().model_dump(mode="json")
    folder.write_chain({"chain": "c", "token": "t", "at": 0.0, "steps": ["validate"], "profile": profile})
    work = StepWork("validate", "validate", ["task"], ["gate"], str(tmp_path / "logs"), [0, 1])
    folder.write_step(StepState(work, [Submitted("11", [0, 1])], "12", time.time(), "c"))
    return folder


def state(chain: ChainFolder) -> StepState:
    found = chain.step("validate")
    assert found is not None
    return found


def test_complete_work_lets_the_next_steps_start(chain: ChainFolder) -> None:
    assert run_gate(chain, "validate", list) == 0
    assert state(chain).state == COMPLETE


def test_complete_work_of_which_nothing_came_stops_the_chain_with_the_reason(chain: ChainFolder) -> None:
    assert run_gate(chain, "validate", list, lambda: "all 7 items failed (unreadable 7)") == 1
    assert state(chain).state == STOPPED
    assert "all 7 items failed (unreadable 7)" in state(chain).message


def test_a_gate_that_cannot_judge_stops_the_chain_and_says_why(chain: ChainFolder) -> None:
    def pending() -> list[int | None]:
        raise FileNotFoundError("products.jsonl")

    assert run_gate(chain, "validate", pending) == 1
    assert state(chain).state == STOPPED
    assert "products.jsonl" in state(chain).message


def test_an_old_gate_that_is_started_again_decides_nothing(chain: ChainFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert run_gate(chain, "validate", list) == 1
    assert state(chain).state == "queued"


def test_a_gate_waits_for_the_end_of_its_tasks_however_and_for_the_success_of_the_gates_before() -> None:
    jobs = [Submitted("5", [0, 1]), Submitted("6", [2])]
    assert after_jobs(jobs, []) == "afterany:5:6"
    assert after_jobs(jobs, ["3", "4"]) == "afterany:5:6,afterok:3:4"


def test_two_commands_cannot_submit_the_same_run_in_the_same_seconds(chain: ChainFolder) -> None:
    with chain.submitting(), pytest.raises(SlurmError, match=f"being submitted just now by process {os.getpid()}"):
        submit_chain(chain, Profile(), [])
    left_by_a_crash = chain.path / "submitting"
    left_by_a_crash.write_text("process 1")
    os.utime(left_by_a_crash, (0, 0))
    with chain.submitting():
        assert left_by_a_crash.read_text() != "process 1"
    assert not left_by_a_crash.exists()
