"""The gate's decisions, as far as they need no cluster."""

import time
from pathlib import Path

import pytest

from slurm.chain import Chain, ChainFolder, StepPhase, StepState, after_jobs
from slurm.gate import run_gate
from slurm.profile import Profile
from slurm.submit import StepWork, SubmittedJob


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChainFolder:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    folder = ChainFolder(tmp_path / "slurm")
    work = StepWork("validate", "validate", ["task"], ["gate"], str(tmp_path / "logs"), [0, 1])
    folder.write_chain(Chain("c", "t", [[work]], Profile()))
    folder.write_step(StepState(work, [SubmittedJob("11", [0, 1])], "12", time.time(), "c"))
    return folder


def state(chain: ChainFolder) -> StepState:
    found = chain.step("validate")
    assert found is not None
    return found


def test_a_complete_step_lets_the_next_steps_start(chain: ChainFolder) -> None:
    assert run_gate(chain, "validate", list) == 0
    assert state(chain).phase is StepPhase.COMPLETE


def test_a_complete_step_that_gives_a_stop_reason_stops_the_chain_with_it(chain: ChainFolder) -> None:
    assert run_gate(chain, "validate", list, lambda: "all 7 items failed (unreadable 7)") == 1
    assert state(chain).phase is StepPhase.STOPPED
    assert "all 7 items failed (unreadable 7)" in state(chain).message


def test_a_gate_that_cannot_read_the_results_stops_the_chain_and_says_why(chain: ChainFolder) -> None:
    def pending() -> list[int | None]:
        raise FileNotFoundError("products.jsonl")

    assert run_gate(chain, "validate", pending) == 1
    assert state(chain).phase is StepPhase.STOPPED
    assert "products.jsonl" in state(chain).message


def test_an_outdated_gate_that_is_restarted_decides_nothing(
    chain: ChainFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert run_gate(chain, "validate", list) == 1
    assert state(chain).phase is StepPhase.QUEUED


def test_a_gate_waits_for_its_tasks_to_end_and_the_gates_before_it_to_succeed() -> None:
    jobs = [SubmittedJob("5", [0, 1]), SubmittedJob("6", [2])]
    assert after_jobs(jobs, []) == "afterany:5:6"
    assert after_jobs(jobs, ["3", "4"]) == "afterany:5:6,afterok:3:4"
