"""Inspecting and resuming a run stays cheap as it grows. `python -m tests.chaos.load` tests the large sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.load import make_run, measure_loop, measure_prepare, measure_status


@pytest.mark.slow
def test_a_task_takes_a_few_hundred_bytes_an_item_however_many_there_are(tmp_path: Path) -> None:
    few, _ = measure_loop(tmp_path / "few", 10_000)
    many, _ = measure_loop(tmp_path / "many", 200_000)
    assert (many - few) * 1e6 / 190_000 < 700


@pytest.mark.slow
def test_rejected_listings_cost_no_memory_and_kept_ones_a_kilobyte(tmp_path: Path) -> None:
    none, _ = measure_prepare(tmp_path / "none", 1_000, 0)
    kept, _ = measure_prepare(tmp_path / "kept", 101_000, 0)
    rejected, _ = measure_prepare(tmp_path / "rejected", 1_000, 100_000)
    assert rejected - none < 20
    assert (kept - none) * 1e6 / 100_000 < 1200


@pytest.mark.slow
def test_status_of_finished_shards_does_not_depend_on_how_many_items_they_had(tmp_path: Path) -> None:
    small = make_run(tmp_path / "small", items=2_000, shards=200, unfinished=0)
    large = make_run(tmp_path / "large", items=40_000, shards=200, unfinished=0)
    seconds = min(measure_status(large)[1] for _ in range(3))
    assert seconds < 2 * min(measure_status(small)[1] for _ in range(3))
