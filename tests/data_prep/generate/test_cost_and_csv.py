"""The cost estimate, and the CSV file of a shard."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from data_prep import dataset_csv
from data_prep.generate import cost
from data_prep.generate.cost import estimate
from data_prep.generate.models import TODAY
from data_prep.generate.prompt import PROMPT_FILE
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import UserError
from data_prep.records import QAPair


def settings(**changes: Any) -> GenerateSettings:
    """Defaults, but for the changes."""
    return GenerateSettings.model_validate(changes)


def test_the_prompt_has_about_as_many_tokens_as_the_estimate_says() -> None:
    listing = 4 * 60  # characters of its fields, usually
    tokens = (len(PROMPT_FILE.read_text()) + listing) / 4
    assert 0.7 * tokens < cost.PROMPT_TOKENS < 1.3 * tokens


def test_the_estimate_counts_image_prompt_and_thoughts_at_the_listed_price() -> None:
    found = estimate(30_000, settings())
    assert found.input_tokens == 33_000 * (280 + cost.PROMPT_TOKENS) and found.output_tokens == 33_000 * 150
    assert found.dollars == pytest.approx((found.input_tokens * 0.30 + found.output_tokens * 2.50) / 1e6, abs=0.01)
    full = estimate(30_000, settings(generator="google_generativeai"))  # cannot ask for a lower resolution
    assert full.input_tokens - found.input_tokens == 33_000 * (1120 - 280)
    thoughtful = estimate(30_000, settings(model="gemini-3.8-flash", thinking="medium"))
    assert thoughtful.output_tokens == 33_000 * (150 + 640)


def test_without_a_known_price_no_dollars_are_named_and_no_cap_is_accepted() -> None:
    own = {"generator": "openai_compatible", "endpoint": "http://x", "model": "Qwen/Qwen3-VL-8B-Instruct"}
    assert estimate(10, settings(**own)).dollars is None
    with pytest.raises(
        UserError, match=r"max_dollars: the price of Qwen/Qwen3-VL-8B-Instruct is not known.*generate\.prices"
    ):
        cost.max_request_cost(settings(**own, max_dollars=1))
    assert cost.max_request_cost(settings(**own, max_dollars=1, prices={"input": 0, "output": 0})) == 0


@pytest.mark.parametrize("tier", ["flex", "batch"])
@pytest.mark.parametrize("prices", [None, {"input": 1, "output": 4}])
def test_flex_and_batch_cost_half(tier: str, prices: dict[str, float] | None) -> None:
    whole, half = (cost.dollars(settings(prices=prices), 10**6, 10**6, tier=one) for one in ("standard", tier))
    assert half == pytest.approx(whole / 2) and whole == (2.8 if prices is None else 5)


def test_the_cap_is_kept_at_the_price_that_is_about_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    doubling = settings(model="gemini-3.8-flash", thinking="low")
    today = cost.max_request_cost(doubling)
    monkeypatch.setenv(TODAY, "2026-12-30")
    assert cost.max_request_cost(doubling) == pytest.approx(2 * today)  # a batch may be answered in January
    assert cost.dollars(doubling, 10**6, 0) == 0.75
    monkeypatch.setenv(TODAY, "2027-01-01")
    assert cost.dollars(doubling, 10**6, 0) == 1.5


def test_batches_take_a_day_at_most_for_each_round() -> None:
    quota = {"requests_per_minute": 15, "requests_per_day": 1500}  # which batches do not count against
    batches = estimate(10_000, settings(quota=quota, tier="batch"))
    assert batches.hours == 24 * 6 and "batches" in batches.limited_by  # 11,000 requests in rounds of 4 x 500


def test_the_slowest_limit_decides_the_hours() -> None:
    found = estimate(3000, settings(quota={"requests_per_minute": 15, "requests_per_day": 1500}))
    assert found.limited_by == "requests_per_day" and found.hours == 48


def test_a_probe_replaces_the_arithmetic_and_gives_a_margin() -> None:
    probe = [cost.ProductUsage(1, 800, 150 + thoughts, thoughts) for thoughts in (0, 200, 400, 600)]
    found = estimate(1000, settings(), probe)
    assert (found.requests, found.input_tokens, found.output_tokens, found.measured) == (1000, 800_000, 450_000, 4)
    assert found.dollars == pytest.approx(0.24 + 1.125, abs=0.01)
    spread = statistics.stdev([one.output_tokens * 2.50e-6 for one in probe])
    assert found.margin == pytest.approx(1000 * 1.96 * spread / 2, rel=1e-6)


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
