"""Why a task's work is not complete: from its exit record and from sacct."""

from pathlib import Path

import pytest

from data_prep.files import write_json
from slurm.chain import ChainFolder
from slurm.exits import FailureReason, TaskExit, failure_reason, read_exit
from slurm.profile import Profile, SlurmError
from slurm.submit import Cluster

BEFORE, SUBMITTED, AFTER = 100.0, 200.0, 300.0


@pytest.mark.parametrize(
    ("task_exit", "sacct_state", "reason"),
    [
        (TaskExit(1, AFTER), None, FailureReason.failed),
        (TaskExit(-9, AFTER), None, FailureReason.killed),
        (TaskExit(-9, AFTER), "OUT_OF_MEMORY", FailureReason.out_of_memory),
        (TaskExit(-9, AFTER, out_of_memory=True), None, FailureReason.out_of_memory),
        (TaskExit(75, AFTER), "CANCELLED", FailureReason.interrupted),
        (TaskExit(0, AFTER), "COMPLETED", FailureReason.unfinished),
        (None, None, FailureReason.killed),
        (None, "NODE_FAIL", FailureReason.killed),
        (None, "TIMEOUT", FailureReason.interrupted),
        (TaskExit(1, BEFORE), None, FailureReason.killed),  # recorded by an earlier submission
    ],
)
def test_the_reason_comes_from_this_submissions_exit_record_and_sacct(
    task_exit: TaskExit | None, sacct_state: str | None, reason: FailureReason
) -> None:
    assert failure_reason(task_exit, SUBMITTED, sacct_state) is reason


def test_own_errors_and_lack_of_memory_are_not_retryable() -> None:
    assert {reason for reason in FailureReason if not reason.retryable} == {
        FailureReason.failed,
        FailureReason.out_of_memory,
    }


def test_a_damaged_or_missing_exit_record_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "exits" / "00001.json"
    assert read_exit(file) is None
    write_json(file, TaskExit(-9, AFTER))
    assert read_exit(file) == TaskExit(-9, AFTER)
    file.write_text('{"code": ')
    assert read_exit(file) is None


def test_the_token_of_a_run_stays_the_same(tmp_path: Path) -> None:
    folder = ChainFolder(tmp_path / "slurm")
    assert folder.token() == folder.token() == ChainFolder(tmp_path / "slurm").token()
    assert folder.token().startswith(f"{tmp_path.name.replace('.', '-')[:40]}.")


def test_a_folder_that_slurm_cannot_write_to_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="'%'"):
        Cluster(Profile(), tmp_path / "100%", "abc")
