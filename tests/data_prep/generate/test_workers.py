"""Requests over real HTTP, through the real client libraries, to a server that misbehaves."""

from __future__ import annotations

import collections
import functools
import threading
import time

import pytest

from data_prep.generate import prompt as prompt_module
from data_prep.generate import workers
from data_prep.generate.clients.base import client_class, known_generators
from data_prep.generate.prompt import prompt, rule_violations
from data_prep.generate.qa_parser import ParsedReply, QAParser
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Reply
from data_prep.stand_in import StandIn, StandInOptions
from tests.data_prep.generate.conftest import KEY, Outcomes, Shop, settings_for


def ask(shop: Shop, settings: GenerateSettings, products=None, previous: Outcomes | None = None) -> Outcomes:
    outcomes = Outcomes()
    workers.generate_all(
        outcomes.todos(products or shop.products, previous),
        image_root=shop.root,
        settings=settings,
        ledger=shop.ledger,
        quota_folder=shop.quota,
    )
    return outcomes


@pytest.mark.parametrize("generator", known_generators())
def test_every_generator_gets_five_pairs_for_the_files_own_bytes(shop: Shop, generator: str) -> None:
    with StandIn(shop.answers, StandInOptions(keys=[KEY])) as server:
        outcomes = ask(shop, settings_for(server.url, generator=generator))
    # the stand-in finds the answers by the digest of the bytes that it received
    assert {e["image"] for e in server.entries} == {shop.sha(p) for p in shop.products}
    assert [e["outcome"] for e in server.entries] == ["ok"] * len(shop.products)
    assert not outcomes.failed and all(outcomes.durable)
    for product in shop.products:
        (reply,) = outcomes.ok[product.item_id]
        assert rule_violations(reply, settings_for(server.url)) is None
        assert reply.input_tokens == 900 and reply.dollars == pytest.approx(900e-7 + 150 * 4e-7)


@pytest.mark.parametrize("generator", known_generators())
@pytest.mark.parametrize("fault", ["status_429", "status_500", "status_503", "break_off", "html"])
def test_every_generator_retries_what_may_pass(shop: Shop, generator: str, fault: str, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.generate.dispatcher._FIRST_PAUSE", 0.01)
    with StandIn(shop.answers, StandInOptions(faults={fault: 0.5}, retry_delay=0.02)) as server:
        outcomes = ask(shop, settings_for(server.url, generator=generator, max_retries=20))
    assert len(outcomes.ok) == len(shop.products) and not outcomes.failed
    seen = collections.Counter(e["outcome"] for e in server.entries)
    assert seen[fault] > 0 and seen["ok"] == len(shop.products)


@pytest.mark.parametrize("generator", known_generators())
def test_a_blocked_item_fails_for_good_and_is_not_asked_again(shop: Shop, generator: str) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"safety": 1.0})) as server:
        outcomes = ask(shop, settings_for(server.url, generator=generator))
    assert len(server.entries) == len(shop.products) == len(outcomes.failed)
    failure = outcomes.failed["B0000"]
    assert failure.reason == "blocked" and not failure.retry
    assert failure.value is not None and failure.value.dollars > 0


@pytest.mark.parametrize("fault", ["four_pairs", "six_pairs", "two_words", "no_category", "truncated", "max_tokens"])
def test_a_reply_that_breaks_the_rules_is_kept_and_repeated_up_to_the_limit(shop: Shop, fault: str) -> None:
    with StandIn(shop.answers, StandInOptions(faults={fault: 1.0})) as server:
        outcomes = ask(shop, settings_for(server.url, max_asks=3))
    kept = outcomes.paid if fault in ("truncated", "max_tokens", "no_category") else outcomes.ok
    assert [len(kept[product.item_id]) for product in shop.products] == [3] * len(shop.products)
    assert len(server.entries) == 3 * len(shop.products)


def test_a_resumed_item_counts_the_replies_that_were_stored(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"four_pairs": 1.0})) as server:
        settings = settings_for(server.url, max_asks=2)
        first = ask(shop, settings.model_copy(update={"max_asks": 1}))
        ask(shop, settings, previous=first)
        assert len(server.entries) == 2 * len(shop.products)


def test_asking_again_says_what_was_wrong(shop: Shop) -> None:
    text = '[{"question": "What is it?", "answer": "light blue"}]'
    wrong = rule_violations(Reply("B1", "I1", text, "STOP", "m", 0, 0, 0.0), settings_for("http://x"))
    assert wrong is not None
    said = prompt(shop.products[0], settings_for("http://x"), wrong)
    assert "light blue" in said and "1 pairs instead of 5" in said


def test_worker_loop_and_next_request_parse_a_reply_once_between_them(shop: Shop, monkeypatch) -> None:
    parsed: collections.Counter[str] = collections.Counter()
    usual = QAParser.parse

    def parse(self: QAParser, text: str) -> ParsedReply:
        parsed[text] += 1
        return usual(self, text)

    monkeypatch.setattr(QAParser, "parse", parse)
    prompt_module._check.cache_clear()  # of other tests' replies
    with StandIn(shop.answers, StandInOptions(faults={"two_words": 1.0}, seed=1)) as server:
        settings = settings_for(server.url, max_asks=2)
        outcomes = Outcomes()

        def record(key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
            outcomes.record(key, outcome, durable=durable)
            assert isinstance(outcome, Ok) and rule_violations(outcome.value, settings)  # as the shard loop does

        todos = (Todo(product, functools.partial(record, product.item_id)) for product in shop.products)
        workers.generate_all(
            todos, image_root=shop.root, settings=settings, ledger=shop.ledger, quota_folder=shop.quota
        )
    assert len(parsed) == len(shop.products) and set(parsed.values()) == {1}


def test_fences_are_no_fault(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"fences": 1.0})) as server:
        outcomes = ask(shop, settings_for(server.url))
    assert len(server.entries) == len(outcomes.ok) == len(shop.products)


@pytest.mark.parametrize("generator", known_generators())
def test_a_rejected_key_is_named_by_its_last_four_characters_only(
    shop: Shop, generator: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with StandIn(shop.answers, StandInOptions(keys=["another"])) as server, pytest.raises(UserError) as caught:
        ask(shop, settings_for(server.url, generator=generator))
    assert KEY[-4:] in str(caught.value) and "GEMINI_API_KEY" in str(caught.value)
    printed = capfd.readouterr()
    assert KEY not in str(caught.value) + repr(caught.value) + printed.out + printed.err


def test_one_bad_key_of_two_is_set_aside_and_the_other_is_used(shop: Shop, monkeypatch) -> None:
    monkeypatch.setenv("SECOND_KEY", "bad-key-bad-key-9999")
    with StandIn(shop.answers, StandInOptions(keys=[KEY])) as server:
        projects = [{"name": "mine", "keys": ["SECOND_KEY", "GEMINI_API_KEY"]}]
        outcomes = ask(shop, settings_for(server.url, projects=projects))
    assert len(outcomes.ok) == len(shop.products)
    assert 1 <= sum(e["outcome"] == "bad_key" for e in server.entries) <= 4  # at most the requests in flight


def test_the_end_of_the_daily_quota_ends_the_task_and_says_until_when(shop: Shop) -> None:
    outcomes = Outcomes()
    with (
        StandIn(shop.answers, StandInOptions(requests_per_day=5)) as server,
        pytest.raises(UserError, match="midnight Pacific"),
    ):
        workers.generate_all(
            outcomes.todos(shop.products),
            image_root=shop.root,
            settings=settings_for(server.url),
            ledger=shop.ledger,
            quota_folder=shop.quota,
        )
    assert len(outcomes.ok) == 5 and not outcomes.failed  # what was paid is kept, the rest remains to do


def test_an_unknown_model_fails_at_once(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(models=["gemini-3.5-flash-lite"])) as server:
        with pytest.raises(UserError, match=r"generate\.model"):
            ask(shop, settings_for(server.url, model="gemini-9"))
        assert len(server.entries) <= 4


def test_the_budget_is_never_passed_even_over_restarts(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        settings = settings_for(server.url, max_dollars=0.003)
        for _ in range(3):
            outcomes = Outcomes()
            with pytest.raises(UserError, match="max_dollars"):
                workers.generate_all(
                    outcomes.todos(shop.products * 20),
                    image_root=shop.root,
                    settings=settings,
                    ledger=shop.ledger,
                    quota_folder=shop.quota,
                )
    paid = sum(e["outcome"] == "ok" for e in server.entries) * (900 * 0.1 + 150 * 0.4) / 1e6
    assert 0.002 < paid <= 0.003


@pytest.mark.parametrize("left", [1, 2])
def test_nothing_answered_is_an_outage_unless_the_server_answers_something_else(
    shop: Shop, left: int, monkeypatch
) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"status_500": 1.0})) as server:
        outcomes, settings = Outcomes(), settings_for(server.url, max_retries=0, max_dollars=1.0)
        everything = (outcomes.todos(shop.products[:left]),)
        with pytest.raises(UserError, match=r"Every request failed.*start again later"):
            workers.generate_all(
                *everything, image_root=shop.root, settings=settings, ledger=shop.ledger, quota_folder=shop.quota
            )
        assert not outcomes.failed
        usual = server._state.draw
        monkeypatch.setattr(server._state, "draw", lambda image: usual(image) if image else (1, ""))
        outcomes = ask(shop, settings, shop.products[:left])
    assert [failed.reason for failed in outcomes.failed.values()] == ["status_500"] * left
    assert sum(entry["outcome"] == "no_image" for entry in server.entries) == 1


def test_a_missing_key_says_which_variable_to_set(shop: Shop, monkeypatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(UserError, match="GEMINI_API_KEY"):
        ask(shop, settings_for("http://127.0.0.1:1"))


def test_an_unknown_generator_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="google_genai"):
        client_class("google_gemai")


def test_the_end_of_the_items_lets_what_is_in_flight_finish(shop: Shop) -> None:
    def until_stopped():
        yield from shop.products[:3]
        time.sleep(0.05)  # the signal comes while requests are under way

    with StandIn(shop.answers, StandInOptions(latency=0.2)) as server:
        outcomes = ask(shop, settings_for(server.url), until_stopped())
    assert len(outcomes.ok) == 3


@pytest.mark.parametrize(
    ("what", "server_says", "quota"),
    [
        ("a slot", {}, {"requests_per_minute": 1}),
        ("a retryDelay", {"faults": {"status_429": 1.0}, "retry_delay": 600.0}, {}),
        ("a pause", {"faults": {"status_503": 1.0}}, {}),
    ],
)
def test_a_signal_ends_every_wait_and_leaves_the_items_to_be_done(
    shop: Shop, monkeypatch, what: str, server_says: dict, quota: dict
) -> None:
    monkeypatch.setattr("data_prep.generate.dispatcher._FIRST_PAUSE", 600.0)
    monkeypatch.setattr("data_prep.generate.dispatcher._LONGEST_PAUSE", 600.0)
    signaled = threading.Event()
    outcomes = Outcomes()
    with StandIn(shop.answers, StandInOptions(**server_says)) as server:
        task = threading.Thread(
            target=workers.generate_all,
            args=(outcomes.todos(shop.products),),
            kwargs={
                "image_root": shop.root,
                "settings": settings_for(server.url, quota=quota),
                "ledger": shop.ledger,
                "quota_folder": shop.quota,
                "stopping": signaled.is_set,
            },
            daemon=True,
        )
        task.start()
        time.sleep(0.5)
        signaled.set()
        task.join(20)  # the waits last ten minutes
        assert not task.is_alive(), what
    assert not outcomes.failed and len(outcomes.ok) <= 1


def test_a_signal_lets_what_is_in_flight_be_answered_and_kept(shop: Shop) -> None:
    outcomes = Outcomes()
    signaled = threading.Event()
    with StandIn(shop.answers, StandInOptions(latency=2.0)) as server:

        def until_asked():
            yield from shop.products[:3]
            threading.Timer(1.0, signaled.set).start()  # when all four are under way
            yield from shop.products[3:]
            raise AssertionError("the items were read on after the signal")

        workers.generate_all(
            outcomes.todos(until_asked()),
            image_root=shop.root,
            settings=settings_for(server.url),
            ledger=shop.ledger,
            quota_folder=shop.quota,
            stopping=signaled.is_set,
        )
        assert len(server.entries) == len(outcomes.ok) == 4 and not outcomes.failed


def test_the_stand_in_of_the_settings_is_started_and_costs_nothing(shop: Shop, monkeypatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    settings = GenerateSettings.model_validate({"stand_in": {"answers": str(shop.answers)}, "max_dollars": 0.000001})
    outcomes = ask(shop, settings)
    assert len(outcomes.ok) == len(shop.products)
    assert sum(r.dollars for replies in outcomes.ok.values() for r in replies) == 0


@pytest.mark.parametrize("generator", known_generators())
def test_a_quota_of_zero_fails_at_once(shop: Shop, generator: str) -> None:
    with (
        StandIn(shop.answers, StandInOptions(requests_per_minute=0)) as server,
        pytest.raises(UserError, match="enable billing"),
    ):
        ask(shop, settings_for(server.url, generator=generator))
    assert len(server.entries) <= 4


def test_under_every_fault_at_once_no_product_is_paid_twice_and_none_is_lost(shop: Shop, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.generate.dispatcher._FIRST_PAUSE", 0.01)
    transport = dict.fromkeys(("status_429", "status_500", "status_503", "break_off", "html"), 0.06)
    content = dict.fromkeys(("fences", "four_pairs", "six_pairs", "two_words", "truncated", "safety"), 0.06)
    with StandIn(shop.answers, StandInOptions(faults=transport | content | {"drip": 0.04}, retry_delay=0.02)) as server:
        settings = settings_for(server.url, timeout=0.5, max_retries=20, max_asks=3, require_category=False)
        outcomes = ask(shop, settings)
    assert set(outcomes.ok) | set(outcomes.failed) == {p.item_id for p in shop.products}
    good = collections.Counter(e["image"] for e in server.entries if e["outcome"] in ("ok", "fences"))
    assert set(good.values()) == {1}
