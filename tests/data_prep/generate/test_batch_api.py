"""Batches, through the real library, with a server that speaks Google's Files and Batch protocol and keeps a log."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import write_json
from data_prep.generate import cost, workers
from data_prep.generate.batch_state import Intent, products_under_way
from data_prep.generate.clients import google_genai
from data_prep.generate.prompt import identity, rule_violations
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import Todo, UserError
from data_prep.records import Product, Reply
from data_prep.stand_in import StandIn, StandInOptions
from data_prep.stand_in import handler as handler_module
from jobs.run.layout import RunDir, ShardStore
from jobs.shards.journal import ReadReport
from jobs.shards.loop import run_shard
from jobs.shards.progress import Limits, ShardSource
from jobs.shards.store import read_records
from tests.data_prep.generate.conftest import Outcomes, Shop, make_shop, settings_for

BATCH = {"requests": 10, "at_once": 2, "at_least": 3, "poll_seconds": 0.1}
PAID = (900 * 0.1 + 150 * 0.4) / 1e6  # dollars of one reply of the stand-in, asked for on its own


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return make_shop(tmp_path / "shop", 25)


def batch_settings(server: StandIn, **changes: Any) -> GenerateSettings:
    batch = BATCH | changes.pop("batch", {})
    return settings_for(server.url, **{"tier": "batch", "batch": batch, "timeout": 2.0, **changes})


def ask(
    shop: Shop,
    settings: GenerateSettings,
    products: Any = None,
    previous: Outcomes | None = None,
    stopping: Any = None,
) -> Outcomes:
    outcomes = Outcomes()
    workers.generate_all(
        outcomes.todos(shop.products if products is None else products, previous, shop.sha),
        image_root=shop.root,
        settings=settings,
        ledger=shop.ledger,
        quota_folder=shop.quota,
        batches_folder=shop.quota.parent / "batches",
        stopping=stopping or (lambda: False),
    )
    return outcomes


def answered(server: StandIn) -> Counter[str]:
    """How often each image was answered well, by the server's log."""
    return Counter(entry["image"] for entry in server.entries if entry["outcome"] in ("ok", "fences"))


def intent_for(shop: Shop, settings: GenerateSettings, products: list[Product]) -> Intent:
    """A batch as a task writes it down before it has the server create it."""
    asked = {product.item_id: 0 for product in products}
    made_from = {product.item_id: shop.sha(product) for product in products}
    return Intent("product-vqa-lost", "default", time.time(), 0.0, identity(settings), asked, made_from)


def made(server: StandIn) -> int:
    """Batches that the server created."""
    return sum(entry["outcome"] in ("batch_created", "batch_unconfirmed") for entry in server.entries)


def test_every_product_is_asked_about_once_and_paid_half(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=0.3)) as server:
        settings = batch_settings(server)
        outcomes = ask(shop, settings)
    assert answered(server) == {shop.sha(product): 1 for product in shop.products}
    assert all("batch" in entry for entry in server.entries) and made(server) == 3  # 10 + 10 + 5
    assert not outcomes.failed and all(outcomes.durable)
    for product in shop.products:  # matched by key: the results come in another order
        (reply,) = outcomes.ok[product.item_id]
        number = product.item_id[1:].lstrip("0") or "0"
        assert f"thing {number}?" in reply.text and rule_violations(reply, settings) is None
        assert reply.dollars == pytest.approx(PAID / 2)


def test_the_last_few_are_asked_in_single_requests_at_the_full_price(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        outcomes = ask(shop, batch_settings(server), shop.products[:12], None)
    assert made(server) == 1 and sum("batch" not in entry for entry in server.entries) == 2
    prices = Counter(round(replies[0].dollars / PAID, 3) for replies in outcomes.ok.values())
    assert prices == {0.5: 10, 1.0: 2}


def test_what_a_batch_did_not_answer_goes_to_the_next_or_is_asked_alone(shop: Shop) -> None:
    faults = dict.fromkeys(("status_429", "status_503", "html", "four_pairs", "truncated", "safety", "max_tokens"), 0.1)
    with StandIn(shop.answers, StandInOptions(faults=faults, retry_delay=0.02)) as server:
        outcomes = ask(shop, batch_settings(server, max_asks=4, max_retries=20))
    assert set(outcomes.ok) | set(outcomes.failed) == {product.item_id for product in shop.products}
    assert {failure.reason for failure in outcomes.failed.values()} <= {"blocked"}
    assert set(answered(server).values()) == {1}
    assert made(server) > 3 and {"four_pairs", "status_503"} <= {entry["outcome"] for entry in server.entries}


@pytest.mark.parametrize("fault", ["expired", "failed"])
def test_after_two_failed_batches_products_are_asked_in_single_requests(shop: Shop, fault: str) -> None:
    with StandIn(shop.answers, StandInOptions(batch_faults={fault: 1.0})) as server:
        outcomes = ask(shop, batch_settings(server))
    assert len(outcomes.ok) == len(shop.products) and made(server) == 6
    assert all("batch" not in entry for entry in server.entries if entry["outcome"] == "ok")


def test_a_batch_whose_creation_was_not_confirmed_is_found_and_not_created_twice(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_faults={"unconfirmed": 1.0})) as server:
        outcomes = ask(shop, batch_settings(server))
    assert len(outcomes.ok) == len(shop.products)
    assert made(server) == 3 and set(answered(server).values()) == {1}


def test_a_batch_that_was_never_created_is_submitted_again(shop: Shop) -> None:
    folder = shop.quota.parent / "batches" / "0"
    folder.mkdir(parents=True)  # as after a kill between the intent and the creation
    (folder.parent / "1").mkdir()  # and after one between the claim and the intent
    with StandIn(shop.answers) as server:
        write_json(folder / "batch.json", intent_for(shop, batch_settings(server), shop.products[:10]))
        outcomes = ask(shop, batch_settings(server, timeout=0.5))
    assert len(outcomes.ok) == len(shop.products) and set(answered(server).values()) == {1}
    assert json.loads((folder / "finished.json").read_text())["state"] == "never_created"


def test_a_task_that_is_stopped_leaves_its_batches_to_the_next(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=2.0)) as server:
        first = ask(shop, batch_settings(server), stopping=lambda: made(server) == 2)
        assert not first.ok and not first.failed and made(server) == 2
        second = ask(shop, batch_settings(server))
    assert len(second.ok) == len(shop.products)
    assert made(server) == 3 and set(answered(server).values()) == {1}


def test_replies_that_were_recorded_are_not_recorded_again(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"four_pairs": 1.0})) as server:
        settings = batch_settings(server, max_asks=1)
        first = ask(shop, settings)
        again = ask(shop, settings.model_copy(update={"max_asks": 2}), previous=first)
    assert {len(replies) for replies in first.ok.values()} == {len(r) for r in again.ok.values()} == {1}
    assert len([entry for entry in server.entries if entry["outcome"] == "four_pairs"]) == 2 * len(shop.products)


def test_two_attempts_at_the_same_products_submit_them_once(shop: Shop) -> None:
    both: list[Outcomes] = []
    with StandIn(shop.answers, StandInOptions(batch_seconds=0.5)) as server:
        settings = batch_settings(server, batch={"at_once": 5})
        tasks = [threading.Thread(target=lambda: both.append(ask(shop, settings))) for _ in range(2)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    assert [len(outcomes.ok) for outcomes in both] == [len(shop.products)] * 2
    # Both may send single requests for a remainder below `at_least`: they only see each other's batches.
    in_batches = Counter(entry["image"] for entry in server.entries if entry["outcome"] == "ok" and "batch" in entry)
    assert set(in_batches.values()) == {1} and len(in_batches) >= 20


def test_a_server_that_takes_no_more_batches_is_waited_for(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=0.3, batches_at_once=1, retry_delay=0.1)) as server:
        outcomes = ask(shop, batch_settings(server, batch={"at_once": 3}))
    assert len(outcomes.ok) == len(shop.products) and made(server) == 3


def test_a_server_that_never_takes_a_batch_ends_the_task_and_says_what_to_do(shop: Shop) -> None:
    with (
        StandIn(shop.answers, StandInOptions(batches_at_once=0, retry_delay=0.05)) as server,
        pytest.raises(UserError, match=r"generate\.batch\.requests"),
    ):
        ask(shop, batch_settings(server, max_retries=2))
    assert not answered(server)


def test_a_batch_that_never_ends_is_cancelled_and_its_products_asked_alone(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=3600.0)) as server:
        outcomes = ask(shop, batch_settings(server, batch={"give_up_hours": 1e-4, "requests": 25}))
    assert len(outcomes.ok) == len(shop.products) and set(answered(server).values()) == {1}
    assert made(server) == 2


def test_a_batch_that_does_not_end_when_cancelled_is_abandoned(shop: Shop, monkeypatch) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=3600.0)) as server:
        monkeypatch.setattr(server.batches, "cancel", lambda name: True)
        settings = batch_settings(server, batch={"requests": 25})
        folder = shop.quota.parent / "batches" / "0"
        ask(shop, settings, stopping=(folder / "job.json").is_file)
        intent = json.loads((folder / "batch.json").read_text())
        (folder / "batch.json").write_text(json.dumps(intent | {"at": time.time() - 52 * 3600}))
        outcomes = ask(shop, settings, shop.products, stopping=lambda: made(server) == 2)
        assert json.loads((folder / "finished.json").read_text())["state"] == "abandoned"
        assert not outcomes.ok


def test_the_budget_is_never_passed_and_what_batches_did_not_cost_is_spent_on_others(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        # The cap allows nine of the most expensive replies possible, and all of those that come.
        cap = 25 * PAID / 2 + 0.0015
        outcomes = ask(shop, batch_settings(server, max_dollars=cap, batch={"requests": 5, "at_once": 1}))
        assert sum(reply.dollars for (reply,) in outcomes.ok.values()) <= cap
        assert len(outcomes.ok) == len(shop.products)


def test_without_budget_for_a_batch_the_task_ends_and_says_so(shop: Shop) -> None:
    with StandIn(shop.answers) as server, pytest.raises(UserError, match="max_dollars"):
        ask(shop, batch_settings(server, max_dollars=0.001))
    assert sum(answered(server).values()) * PAID <= 0.001


def test_a_bad_key_ends_the_task_and_is_named_by_its_last_four_characters(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(keys=["another"])) as server, pytest.raises(UserError, match=r"cd42"):
        ask(shop, batch_settings(server))


def test_batches_need_the_library_that_has_them() -> None:
    with pytest.raises(ValueError, match="google_genai"):
        settings_for("http://x", generator="google_generativeai", tier="batch")


class ShopSource(ShardSource[Product]):
    """Generation for the products of a shop, as the stage runs it."""

    value_type = Reply
    limits = Limits(max_replies=3)

    def __init__(self, folder: Path, url: str) -> None:
        self.shop = make_shop_again(folder)
        self.generate = settings_for(url, tier="batch", batch=BATCH, timeout=0.5, max_asks=3, max_retries=20)
        self.store = RunDir(folder / "run").store("generate")

    def stores(self) -> dict[str, ShardStore]:
        return {"": self.store}

    def settings(self, variant: str) -> dict[str, Any]:
        return identity(self.generate)

    def items(self) -> list[Product]:
        return self.shop.products

    def key(self, item: Product) -> str:
        return item.item_id

    def made_from(self, item: Product) -> str:
        return self.shop.sha(item)

    def process(self, todos: Iterator[Todo[Product]]) -> None:
        workers.generate_all(
            todos,
            image_root=self.shop.root,
            settings=self.generate,
            ledger=self.shop.ledger,
            quota_folder=self.shop.quota,
            batches_folder=self.shop.quota.parent / "batches",
        )

    def rule_violations(self, reply: Reply) -> str | None:
        return rule_violations(reply, self.generate)


def _task(folder: str, url: str, shard: int, shards: int) -> None:
    """One attempt at one shard."""
    assert run_shard(ShopSource(Path(folder), url), shard, shards, lambda: False).remaining == 0


def make_shop_again(folder: Path) -> Shop:
    """The shop that the test made."""
    lines = (folder / "products.json").read_text()
    products = [Product(**product) for product in json.loads(lines)]
    return Shop(folder / "shop" / "images", products, folder / "shop" / "answers.jsonl", folder / "shop" / "quota")


def test_killed_at_random_moments_no_product_is_paid_twice_and_none_is_lost(tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "shop", 100)
    (tmp_path / "products.json").write_text(
        json.dumps([{name: getattr(p, name) for name in Product.__dataclass_fields__} for p in shop.products])
    )
    spawn, rng, kills = multiprocessing.get_context("spawn"), random.Random(0), 0
    faults = {"four_pairs": 0.1, "status_503": 0.1}
    with StandIn(
        shop.answers,
        StandInOptions(
            faults=faults, batch_seconds=1.5, batch_faults={"unconfirmed": 0.3, "expired": 0.1}, retry_delay=0.02
        ),
    ) as server:
        finished = [False, False]
        for attempt in range(40):
            tasks = {
                shard: spawn.Process(target=_task, args=(str(tmp_path), server.url, shard, 2))
                for shard in range(2)
                if not finished[shard]
            }
            for task in tasks.values():
                task.start()
            # The first attempts are killed somewhere between starting up and waiting for results; the last are left alone.
            if attempt < 6:
                time.sleep(rng.uniform(0.5, 3.0))
            else:
                for task in tasks.values():
                    task.join()
            for shard, task in tasks.items():
                if task.is_alive():
                    os.kill(task.pid or 0, signal.SIGKILL)
                    kills += 1
                task.join()
                finished[shard] = task.exitcode == 0
            if all(finished):
                break
    assert all(finished) and kills >= 4
    store = RunDir(tmp_path / "run").store("generate")
    good = Counter(
        r.key
        for r in read_records(store, ReadReport())
        if r.ok and rule_violations(r.outcome(Reply).value, settings_for("http://x")) is None
    )
    assert good == {product.item_id: 1 for product in shop.products}
    in_batches = Counter(e["image"] for e in server.entries if e["outcome"] == "ok" and "batch" in e)
    assert set(in_batches.values()) == {1}
    one_by_one = [e for e in server.entries if e["outcome"] == "ok" and "batch" not in e]
    # Single requests in flight at a kill may be paid twice: at most four of each task.
    assert sum(answered(server).values()) - len(shop.products) <= 4 * kills and len(one_by_one) < len(shop.products)


def test_status_counts_what_waits_in_batches(shop: Shop) -> None:
    folder = shop.quota.parent / "batches"
    with StandIn(shop.answers, StandInOptions(batch_seconds=2.0)) as server:
        ask(shop, batch_settings(server), stopping=lambda: made(server) == 2)
        assert products_under_way(folder) == 20
        ask(shop, batch_settings(server))
    assert products_under_way(folder) == 0


def folder_of(shop: Shop) -> Path:
    return shop.quota.parent / "batches"


def instead(monkeypatch: pytest.MonkeyPatch, method: str, act: Callable[[Any], bool | None]) -> None:
    """Have the server do something first; the request is answered as usual unless it returns True."""
    usual = getattr(handler_module.Handler, method)
    monkeypatch.setattr(handler_module.Handler, method, lambda self, *a: None if act(self) else usual(self, *a))


def unavailable(handler: Any) -> bool:
    handler._error(503, "UNAVAILABLE", "try again later")
    return True


@pytest.mark.parametrize("unwritten", [False, True])
def test_what_another_attempt_submitted_during_an_upload_is_not_submitted_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, unwritten: bool
) -> None:
    with StandIn(shop.answers) as server:
        settings = batch_settings(server, timeout=0.5)
        ask(shop, settings, shop.products[:20])
        elsewhere = folder_of(shop).rename(shop.root.parent / "elsewhere")
        if unwritten:  # they are under way, and behind them is a claim of which nothing is known yet
            for number in "01":
                (elsewhere / number / "finished.json").unlink()
            (elsewhere / "2").mkdir()

        def appear(handler: Any) -> None:
            if elsewhere.is_dir():
                elsewhere.rename(folder_of(shop))

        instead(monkeypatch, "_upload", appear)
        outcomes = ask(shop, settings, shop.products[:20])
        assert len(outcomes.ok) == 20 and made(server) == 2
        assert set(answered(server).values()) == {1}


def test_batches_smaller_than_at_least_are_batches_all_the_same(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        ask(shop, batch_settings(server, batch={"requests": 5, "at_least": 20}))
        assert made(server) == 5 and all("batch" in entry for entry in server.entries)


def test_a_batch_that_the_budget_does_not_allow_is_not_prepared_over_and_over(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = 0
    usual = google_genai.Client.encode

    def encode(self: Any, *arguments: Any) -> bytes:
        nonlocal encoded
        encoded += 1
        return usual(self, *arguments)

    monkeypatch.setattr(google_genai.Client, "encode", encode)
    with StandIn(shop.answers, StandInOptions(batch_seconds=1.0)) as server:
        cap = 10 * cost.max_request_cost(batch_settings(server), tier="batch") * 1.5  # one batch, and half another
        outcomes = ask(shop, batch_settings(server, max_dollars=cap))
        assert len(outcomes.ok) == len(shop.products)
        assert encoded == sum("batch" in entry and bool(entry["image"]) for entry in server.entries)


def test_an_upload_that_fails_for_a_while_is_repeated(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 3
    with StandIn(shop.answers) as server:

        def busy(handler: Any) -> bool:
            nonlocal failures
            failures -= 1
            return failures >= 0 and unavailable(handler)

        instead(monkeypatch, "_upload", busy)
        outcomes = ask(shop, batch_settings(server, max_retries=1))
        assert len(outcomes.ok) == len(shop.products) and made(server) == 3


@pytest.mark.parametrize("method", ["_upload", "_create_batch"])
def test_a_server_that_never_creates_a_batch_ends_the_task_and_says_what_to_do(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    tried = 0

    def count(handler: Any) -> bool:
        nonlocal tried
        tried += 1
        return unavailable(handler)

    with StandIn(shop.answers) as server:
        instead(monkeypatch, method, count)
        settings = batch_settings(server, max_retries=1, timeout=0.3)
        with pytest.raises(UserError, match=r"generate\.batch\.requests"):
            ask(shop, settings, stopping=lambda: tried > 20)


def test_finished_batches_of_other_tasks_keep_nobody_waiting_for_a_full_server(shop: Shop) -> None:
    other = folder_of(shop) / "0"
    other.mkdir(parents=True)
    intent = Intent("product-vqa-other", "default", time.time(), 0.0, {}, {"of another shard": 0}, {})
    write_json(other / "batch.json", intent)
    looks = 0

    def stopping() -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:
            (other / "finished.json").write_text('{"state": "succeeded"}')
        return looks > 2000

    with (
        StandIn(shop.answers, StandInOptions(batches_at_once=0, retry_delay=0.01)) as server,
        pytest.raises(UserError, match=r"generate\.batch\.requests"),
    ):
        ask(shop, batch_settings(server, max_retries=2), stopping=stopping)


def test_a_file_that_is_too_large_for_the_server_ends_the_task_and_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn(shop.answers) as server:
        instead(monkeypatch, "_upload", lambda handler: handler._error(413, "", "Request Entity Too Large") or True)
        with pytest.raises(UserError, match=r"Too Large.*generate\.batch\.requests"):
            ask(shop, batch_settings(server))


@pytest.mark.parametrize("status", [403, 404])
def test_results_that_the_server_has_deleted_are_asked_for_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def deleted(handler: Any) -> bool:
        first = min(server.batches._jobs.values(), key=lambda job: job.created)
        if not first.results or first.results not in handler.path:
            return False
        handler._error(status, "", "You do not have permission to access the File or it may not exist.")
        return True

    with StandIn(shop.answers) as server:
        instead(monkeypatch, "do_GET", deleted)
        outcomes = ask(shop, batch_settings(server, timeout=0.3))
        assert len(outcomes.ok) == len(shop.products)
    assert json.loads((folder_of(shop) / "0" / "finished.json").read_text())["state"] == "gone"


def test_a_batch_that_the_server_does_not_know_at_once_is_not_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()

    def unknown(handler: Any) -> bool:
        if "/batches/" not in handler.path:
            return False
        seen[handler.path] += 1
        if seen[handler.path] <= 2:
            handler._error(404, "NOT_FOUND", "Requested entity was not found")
        return seen[handler.path] <= 2

    with StandIn(shop.answers) as server:
        instead(monkeypatch, "do_GET", unknown)
        outcomes = ask(shop, batch_settings(server))
        assert len(outcomes.ok) == len(shop.products) and made(server) == 3
        assert set(answered(server).values()) == {1}


def test_a_cap_that_is_set_later_knows_the_batches_without_one(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=0.5)) as server:
        ask(shop, batch_settings(server), shop.products[:20], stopping=lambda: made(server) == 2)
        before = len(server.entries)
        with pytest.raises(UserError, match="max_dollars"):
            ask(shop, batch_settings(server, max_dollars=1e-6))
        later = [entry for entry in server.entries[before:] if entry["image"] and "batch" not in entry]
        assert made(server) == 2 and not later


def test_replies_that_are_missing_count_as_the_largest_cost(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"html": 1.0})) as server:
        each = cost.max_request_cost(batch_settings(server), tier="batch")
        settings = batch_settings(server, max_dollars=11 * each)  # one batch, and nothing after it
        with pytest.raises(UserError, match="max_dollars"):
            ask(shop, settings)
        assert made(server) == 1


def test_a_stop_does_not_wait_for_a_transfer(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, returned = threading.Event(), threading.Event()
    in_time = []

    def hang(handler: Any) -> None:
        stop.set()
        in_time.append(returned.wait(20))

    with StandIn(shop.answers) as server:
        instead(monkeypatch, "_upload", hang)
        ask(shop, batch_settings(server, timeout=60.0), stopping=stop.is_set)
        returned.set()
        while not in_time:
            time.sleep(0.01)
    assert in_time[0]


def test_torn_unknown_repeated_and_odd_lines_of_results_lose_no_good_reply(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        usual = server.batches._answer

        def odd(job: Any, line: bytes) -> bytes:
            good = usual(job, line)
            key = json.loads(line)["key"]
            error = json.dumps({"key": key, "error": {"code": 13, "message": "late"}})
            nothing = json.dumps({"key": {}, "response": {"candidates": [{"content": None, "finishReason": None}]}})
            return b"\n".join([good.strip(), error.encode(), nothing.encode(), b"null", good[:40]]) + b"\n"

        server.batches._answer = odd  # type: ignore[method-assign]
        outcomes = ask(shop, batch_settings(server))
        assert len(outcomes.ok) == len(shop.products) and not outcomes.failed
        assert made(server) == 3 and set(answered(server).values()) == {1}
