"""A run killed at random moments ends like an undisturbed one. `make chaos` does the same with 200 kills."""

from pathlib import Path

import pytest

from jobs.run.layout import STAGES
from tests.chaos.__main__ import Tally, try_kills


def assert_nothing_lost(tally: Tally, kills: int) -> None:
    assert tally.kills.by_stage.total() == kills
    assert tally.records > 0
    assert tally.lost == []
    assert tally.repeated == 0
    assert tally.paid_twice <= tally.paid_twice_at_most()


def test_four_kills_in_the_data_stages_lose_no_record_and_change_none(tmp_path: Path) -> None:
    tally = try_kills(tmp_path, kills=4, seed=3, stages=("prepare", "validate", "generate"), products=16)
    assert_nothing_lost(tally, kills=4)


@pytest.mark.slow
def test_kills_in_every_stage_change_no_record_no_adapter_and_no_metric(tmp_path: Path) -> None:
    tally = try_kills(tmp_path, kills=9, seed=4)
    assert_nothing_lost(tally, kills=9)
    assert all(tally.kills.by_stage[stage] == 1 for stage in STAGES)
