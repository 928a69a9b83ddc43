"""The cost estimate, and the CSV file of a shard."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import dataset_csv
from data_prep.generate.cost import estimate
from data_prep.records import QAPair
from tests.data_prep.generate.conftest import settings_for


def test_the_estimate_for_all_of_abo_is_of_the_order_that_others_paid() -> None:
    found = estimate(147_702, settings_for("http://x", quota={"requests_per_minute": 2000}))
    assert 130e6 < found.input_tokens < 160e6 and 20e6 < found.output_tokens < 26e6
    assert found.dollars == pytest.approx(found.input_tokens * 0.1e-6 + found.output_tokens * 0.4e-6, abs=0.01)


def test_batches_cost_half_and_take_a_day_at_most_for_each_round() -> None:
    quota = {"requests_per_minute": 15, "requests_per_day": 1500}  # which batches do not count against
    one_by_one, batches = (estimate(10_000, settings_for("http://x", quota=quota, batch=b)) for b in (None, {}))
    assert batches.dollars == pytest.approx(one_by_one.dollars / 2, abs=0.01)
    assert batches.hours == 24 * 6 and "batches" in batches.limited_by  # 11,000 requests in rounds of 4 x 500


def test_the_slowest_limit_decides_the_hours() -> None:
    found = estimate(3000, settings_for("http://x", quota={"requests_per_minute": 15, "requests_per_day": 1500}))
    assert found.limited_by == "requests_per_day" and found.hours == 48


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        dataset_csv.CsvRow(
            "B1", "I1", [QAPair('Is it "new", or\nold?', "new", "easy"), QAPair("Größe ok?", "yes", "")]
        ),
        dataset_csv.CsvRow("B2", "I2", []),
    ]
    path = tmp_path / "dataset_0.csv"
    assert dataset_csv.write(path, rows) == 2
    assert list(dataset_csv.read(path)) == rows
    assert path.read_text().splitlines()[0] == "item_id,image_id,qas"


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dataset_0.csv"
    path.write_text("item_id,image_id,qas\nB1,I1,[{\n")
    with pytest.raises(ValueError, match=r"dataset_0\.csv:2"):
        list(dataset_csv.read(path))
