"""The cards of generator models, their prices by date, and what a request carries because of them."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest

from data_prep.generate import models
from data_prep.generate.models import Price, card, cards, list_price, notices
from data_prep.generate.settings import GenerateSettings

TODAY = datetime.date(2026, 11, 24)


def settings(**changes: Any) -> GenerateSettings:
    return GenerateSettings.model_validate(changes)


def test_every_card_says_where_and_when_it_was_read_and_names_a_living_successor() -> None:
    for name, found in cards().items():
        assert found.sources and all(source.startswith("https://") for source in found.sources), name
        assert found.read_on <= TODAY and found.thinking in ("level", "budget", "none"), name
        assert set(found.image_tokens) == {"low", "medium", "high"}, name
        assert (found.default in found.levels) == (found.thinking != "none"), name
        if found.shutdown:
            assert found.after in ("error", "routed"), name
            successor = cards()[str(found.successor)]
            assert not successor.is_shut_down(TODAY), name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gemini-3.5-flash-lite", "gemini-3.5-flash-lite"),
        ("models/gemini-3.5-flash-001", "gemini-3.5-flash"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl"),
        ("qwen3-vl:8b", "qwen3-vl"),
        ("gemini-flash-latest", None),  # it stands for another model every few months
        ("gemini-3.5-flash-image", None),
    ],
)
def test_a_card_is_found_by_any_spelling_of_its_model(model: str, name: str | None) -> None:
    found = card(model)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("model", "tier", "day", "price"),
    [
        ("gemini-3.5-flash-lite", "standard", TODAY, Price(0.30, 2.50)),
        ("gemini-3.5-flash-lite", "batch", TODAY, Price(0.15, 1.25)),
        ("gemini-3.5-flash-lite", "flex", TODAY, Price(0.15, 1.25)),
        ("gemini-3.8-flash", "standard", datetime.date(2026, 12, 31), Price(0.75, 3.75)),
        ("gemini-3.8-flash", "standard", datetime.date(2027, 1, 1), Price(1.50, 7.50)),
        ("gemini-3.8-flash", "batch", datetime.date(2027, 1, 1), Price(0.75, 3.75)),
        ("gemini-3.5-flash", "standard", datetime.date(2026, 10, 7), Price(1.50, 9.00)),
        ("gemini-3.5-flash", "standard", TODAY, Price(0.75, 3.75)),  # 3.6-flash answers, at its own price
        ("gemini-9-flash", "standard", TODAY, None),
    ],
)
def test_prices_follow_date_tier_and_routing(model: str, tier: str, day: datetime.date, price: Price | None) -> None:
    assert list_price(model, tier, day) == price


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gemini-3.5-flash-lite", []),
        ("gemini-3.1-flash-lite", []),  # until May 2027
        ("gemini-2.0-flash", ["was shut down on 2026-06-01", "404", "gemini-3.5-flash-lite ($0.3 in and $2.5 out"]),
        (
            "gemini-2.5-flash",
            ["is shut down on 2026-12-01, in 7 days", "another model answers", "gemini-3.5-flash-lite"],
        ),
        ("gemini-3.7-flash", ["was shut down on 2026-10-08", "another model answers", "gemini-3.8-flash ($0.75 in"]),
        ("gemini-3.8-flash", ["changes on 2027-01-01: from $0.75 in and $3.75 out per million tokens to $1.5 in"]),
        ("gemini-9-flash", ["no card"]),
    ],
)
def test_shutdown_routing_and_change_of_price_are_announced(model: str, words: list[str]) -> None:
    said = " ".join(notices(model, TODAY))
    assert bool(said) == bool(words)
    for word in words:
        assert word in said


def test_what_the_package_alone_calls_deprecated_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    living = card("gemini-3.5-flash-lite")
    monkeypatch.setattr(models, "card", lambda model: living)  # the package flags 2.0-flash; this card does not
    assert any("deprecated, says the package" in line for line in notices("gemini-2.0-flash", TODAY))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "gemini-3.8-flash"}, "does not accept minimal; set generate.thinking to one of low, medium, high"),
        ({"model": "gemini-3.8-flash", "generator": "google_generativeai", "thinking": "low"}, "cannot tell"),
        ({"model": "gemini-3.8-flash", "generator": "google-generativeai", "thinking": None}, "cannot tell"),
        ({"generator": "google_generativeai", "thinking": "high"}, "cannot send it"),
        ({"generator": "google_generativeai", "tier": "flex"}, "google_genai"),
        ({"generator": "openai_compatible", "tier": "batch"}, "google_genai"),
        ({"tier": "flex"}, "generate.timeout to 900"),
    ],
)
def test_what_model_and_library_cannot_do_is_refused_where_it_is_set(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        settings(**changes)


def test_nothing_is_sent_to_a_model_of_which_nothing_is_known() -> None:
    unknown = settings(model="gemini-9-flash")
    assert (unknown.sent_thinking, unknown.sent_resolution, unknown.api_version) == (None, None, "v1beta")
