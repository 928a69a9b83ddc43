"""Gemini as it answers since its third generation: thoughts, routed and retired models, and the account's trouble.

One run a way, through both of Google's libraries: what was paid for, what is shown, and what the user is told.
"""

from __future__ import annotations

import collections
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_prep.generate import workers
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import UserError
from data_prep.records import Reply
from data_prep.stand_in import StandIn, StandInOptions
from data_prep.stand_in.handler import Handler
from data_prep.stand_in.messages import ROUTED_TO
from tests.data_prep.generate.conftest import Outcomes, Shop, make_shop, settings_for

LIBRARIES = ["google_genai", "google_generativeai"]
MODEL = "gemini-3.5-flash-lite"


@dataclass
class Shown:
    """What a run came to."""

    outcomes: Outcomes
    error: str  # what the user is told; "" where the run went through
    paid: int  # requests that the stand-in answered, and billed
    seen: collections.Counter[str] = field(default_factory=collections.Counter)  # requests by how they were answered


def run(shop: Shop, generator: str, options: StandInOptions, previous: Outcomes | None = None, **changes: Any) -> Shown:
    outcomes, error = Outcomes(), ""
    with StandIn(shop.answers, options) as server:
        settings = settings_for(server.url, generator=generator, model=MODEL, min_usable=0.5, **changes)
        try:
            ask(shop, settings, outcomes, previous)
        except UserError as stopped:
            error = str(stopped)
        seen = collections.Counter(entry["outcome"] for entry in server.entries)
        paid = sum("output_tokens" in entry for entry in server.entries)
    return Shown(outcomes, error, paid, seen)


def ask(shop: Shop, settings: GenerateSettings, outcomes: Outcomes, previous: Outcomes | None = None) -> None:
    workers.generate_all(
        outcomes.todos(shop.products, previous),
        image_root=shop.root,
        settings=settings,
        ledger=shop.ledger,
        quota_folder=shop.quota,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.generate.dispatcher._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("data_prep.generate.dispatcher._LONGEST_PAUSE", 0.1)


# What each way must come to: what the user is told, and how many replies may be paid for at most (of 20 products).
NOTHING = ""
WAYS: dict[str, tuple[StandInOptions, str, int]] = {
    "thinks and signs": (StandInOptions(faults={"thoughts": 1.0}), NOTHING, 20),
    "shows its thoughts": (StandInOptions(faults={"thought_parts": 1.0}), NOTHING, 20),
    "eats every budget": (StandInOptions(faults={"eaten": 1.0}), r"answered.*, 0 usable \(eaten_by_thoughts", 10),
    "stops with nothing": (StandInOptions(faults={"empty": 1.0}), r"answered.*, 0 usable \(empty", 10),
    "routes silently": (
        StandInOptions(faults={"routed": 0.3}, seed=4),
        rf"generate\.successor={ROUTED_TO}|{MODEL}",
        20,
    ),
    "says no version": (StandInOptions(faults={"no_version": 1.0}), NOTHING, 20),
    "is deprecated": (StandInOptions(faults={"deprecated": 1.0}), NOTHING, 20),
    "is retired": (StandInOptions(retired=[MODEL]), r"no longer available.*generate\.successor", 0),
    "empty prepay": (StandInOptions(faults={"status_402": 1.0}), r"credits are depleted.*top it up", 0),
    "spending cap": (StandInOptions(faults={"spending_cap": 1.0}), r"monthly spending cap.*raise it", 0),
    "429 without RetryInfo": (StandInOptions(faults={"bare_429": 1.0}), r"Resource has been exhausted.*No product", 0),
    "503 that lasts": (StandInOptions(outage_seconds=60.0), r"model is overloaded.*No product was given up", 0),
    "API disabled": (StandInOptions(faults={"api_disabled": 1.0}), r"has not been used in project.*enable it", 0),
    "location": (StandInOptions(faults={"location": 1.0}), r"location is not supported.*supported country", 0),
    "quota 0": (StandInOptions(requests_per_minute=0), r"limit: 0.*quota of this project", 0),
}


@pytest.mark.parametrize("generator", LIBRARIES)
@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_answering_is_paid_for_in_vain_or_blamed_on_a_product(
    tmp_path: Path, generator: str, way: str
) -> None:
    options, told, most_paid = WAYS[way]
    shop = make_shop(tmp_path / "shop", 20)
    shown = run(shop, generator, options, outage_minutes=0.005)
    print(f"{way} | {generator} | {shown.paid} paid | {len(shown.outcomes.ok)} usable | {shown.error}")
    if told:
        assert re.search(told, shown.error, re.S), shown.error
    else:
        assert not shown.error and len(shown.outcomes.ok) == 20
    assert shown.paid <= most_paid and not shown.outcomes.failed
    replies = [reply for kept in (shown.outcomes.ok, shown.outcomes.paid) for of in kept.values() for reply in of]
    assert len(replies) == shown.paid  # whatever was paid for is on disk
    assert all(reply.text for of in shown.outcomes.ok.values() for reply in of)
    if told and shown.paid:  # a relaunch knows it, and buys nothing more
        again = run(shop, generator, options)
        assert again.error == shown.error and not again.seen


@pytest.mark.parametrize("generator", LIBRARIES)
def test_tokens_are_stored_by_kind_and_cost_what_the_server_counted(shop: Shop, generator: str) -> None:
    with StandIn(shop.answers, StandInOptions(thoughts=300.0)) as server:
        outcomes = Outcomes()
        ask(shop, settings_for(server.url, generator=generator, model=MODEL, max_output_tokens=4096), outcomes)
    replies = [reply for of in outcomes.ok.values() for reply in of]
    assert sum(e["input_tokens"] for e in server.entries) == sum(reply.input_tokens for reply in replies)
    assert sum(e["output_tokens"] for e in server.entries) == sum(reply.output_tokens for reply in replies)
    assert len({reply.thought_tokens for reply in replies}) > 6 and all(
        0 < r.thought_tokens < r.output_tokens for r in replies
    )
    known = {reply.image_tokens for reply in replies}
    assert known == ({280} if generator == "google_genai" else {None})  # the old library drops the field
    assert {reply.model_version for reply in replies} == {MODEL}
    assert sum(r.dollars for r in replies) == pytest.approx(
        sum(e["input_tokens"] * 1e-7 + e["output_tokens"] * 4e-7 for e in server.entries)
    )


@pytest.mark.parametrize("generator", LIBRARIES)
def test_an_eaten_budget_is_doubled_and_never_asked_the_same_way(shop: Shop, generator: str) -> None:
    # About 110 tokens of text, and 300 of thoughts: no reply fits into 128, all fit into 1,024.
    shown = run(shop, generator, StandInOptions(thoughts=300.0), max_output_tokens=128, max_asks=5, outage_minutes=0.01)
    assert "eaten_by_thoughts" in shown.error and not shown.outcomes.failed  # one ask a product, until most are known
    with StandIn(shop.answers, StandInOptions(thoughts=300.0)) as server:
        outcomes = Outcomes()
        settings = settings_for(server.url, generator=generator, model=MODEL, max_output_tokens=128, max_asks=5)
        ask(shop, settings, outcomes)
    assert len(outcomes.ok) == len(shop.products) and not outcomes.failed
    for product in shop.products:
        cut = [reply.output_tokens for reply in outcomes.paid[product.item_id]]
        assert cut == [128 * 2**n for n in range(len(cut))] and cut


@pytest.mark.parametrize("generator", LIBRARIES)
def test_a_successor_goes_on_with_a_routed_run_and_both_are_kept_apart(tmp_path: Path, generator: str) -> None:
    shop = make_shop(tmp_path / "shop", 20)
    first = run(shop, generator, StandInOptions())
    routed = run(shop, generator, StandInOptions(faults={"routed": 1.0}))
    assert f"generate.successor={ROUTED_TO}" in routed.error and 0 < routed.paid <= 4  # those in flight
    assert not run(shop, generator, StandInOptions(faults={"routed": 1.0})).seen  # remembered
    both = run(shop, generator, StandInOptions(faults={"routed": 0.5}), successor=ROUTED_TO)
    versions = collections.Counter(reply.model_version for of in both.outcomes.ok.values() for reply in of)
    assert not first.error and not both.error and set(versions) == {MODEL, ROUTED_TO}


@pytest.mark.parametrize("generator", LIBRARIES)
def test_a_model_that_is_retired_in_the_middle_has_a_way_on(tmp_path: Path, generator: str) -> None:
    shop = make_shop(tmp_path / "shop", 20)
    assert not run(shop, generator, StandInOptions(faults={"no_version": 1.0})).error
    gone = StandInOptions(retired=[MODEL])
    assert "generate.successor" in run(shop, generator, gone).error
    on = run(shop, generator, gone, successor="gemini-3.1-flash-lite")
    replies: list[Reply] = [reply for of in on.outcomes.ok.values() for reply in of]
    assert (
        not on.error and {reply.model_version for reply in replies} == {"gemini-3.1-flash-lite"} and len(replies) == 20
    )


def test_ten_tasks_at_once_buy_ten_replies_of_no_use_between_them(tmp_path: Path) -> None:
    shop, errors = make_shop(tmp_path / "shop", 100), []

    def task(part: int, url: str) -> None:
        try:
            own = Shop(shop.root, shop.products[part::10], shop.answers, shop.quota)
            ask(own, settings_for(url, model=MODEL, min_usable=0.5), Outcomes())
        except UserError as error:
            errors.append(str(error))

    with StandIn(shop.answers, StandInOptions(faults={"eaten": 1.0}, latency=0.1)) as server:
        threads = [threading.Thread(target=task, args=(part, server.url)) for part in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(errors) == 10 and 6 <= len(server.entries) <= 10


def test_no_product_is_given_up_while_nothing_is_answered_at_all(shop: Shop) -> None:
    shown = run(shop, "google_genai", StandInOptions(faults={"break_off": 1.0}), max_retries=1)
    assert "Every request failed" in shown.error and not shown.outcomes.failed
    some = run(shop, "google_genai", StandInOptions(faults={"break_off": 0.5}, seed=2), max_retries=0)
    assert not some.error and {failed.reason for failed in some.outcomes.failed.values()} == {"connection"}


def test_a_project_whose_balance_is_empty_is_set_aside_and_the_other_is_used(shop: Shop, monkeypatch) -> None:
    monkeypatch.setenv("SECOND_KEY", "another-key-of-another-project")
    usual = Handler._answer

    def poor(self: Handler, *arguments: Any) -> None:
        if "another" in self._key():
            self._fail("status_402", MODEL)
        else:
            usual(self, *arguments)

    monkeypatch.setattr(Handler, "_answer", poor)
    projects = [{"name": "poor", "keys": ["SECOND_KEY"]}, {"name": "rich", "keys": ["GEMINI_API_KEY"]}]
    shown = run(shop, "google_genai", StandInOptions(), projects=projects)
    assert not shown.error and len(shown.outcomes.ok) == len(shop.products)
