"""Why a task's work is not complete, from what it said itself and what sacct says."""

from pathlib import Path

import pytest

from slurm.chain import ChainFolder
from slurm.ends import End, Why, read_end, why, write_end
from slurm.profile import Profile, SlurmError
from slurm.submit import Cluster

BEFORE, SUBMITTED, AFTER = 100.0, 200.0, 300.0


@pytest.mark.parametrize(
    ("end", "states", "reason"),
    [
        (End(1, "7", AFTER), set(), Why.failed),
        (End(-9, "7", AFTER), set(), Why.killed),
        (End(-9, "7", AFTER), {"OUT_OF_MEMORY"}, Why.out_of_memory),
        (End(-9, "7", AFTER, out_of_memory=True), set(), Why.out_of_memory),
        (End(75, "7", AFTER), {"CANCELLED"}, Why.interrupted),
        (End(0, "7", AFTER), {"COMPLETED"}, Why.unfinished),
        (None, set(), Why.killed),
        (None, {"NODE_FAIL"}, Why.killed),
        (None, {"TIMEOUT"}, Why.interrupted),
        (End(1, "3", BEFORE), set(), Why.killed),  # an earlier submission's word says nothing of this one
    ],
)
def test_the_reason_comes_from_the_last_word_of_this_submission_and_from_sacct(
    end: End | None, states: set[str], reason: Why
) -> None:
    assert why(end, SUBMITTED, states) is reason


def test_what_fails_by_itself_or_lacks_memory_is_not_worth_a_retry() -> None:
    assert {reason for reason in Why if not reason.worth_retrying} == {Why.failed, Why.out_of_memory}


def test_a_damaged_or_missing_last_word_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "ends" / "00001.json"
    assert read_end(file) is None
    write_end(file, -9, "12")
    end = read_end(file)
    assert end is not None
    assert (end.code, end.job) == (-9, "12")
    file.write_text('{"code": ')
    assert read_end(file) is None


def test_the_token_of_a_run_stays_the_same(tmp_path: Path) -> None:
    folder = ChainFolder(tmp_path / "slurm")
    assert folder.token() == folder.token() == ChainFolder(tmp_path / "slurm").token()
    assert len(folder.token()) == 8


def test_a_folder_that_slurm_cannot_write_to_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="'%'"):
        Cluster(Profile(), tmp_path / "100%", "abc")
