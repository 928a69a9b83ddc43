"""Batches outlive launches: their replies are never lost, never another model's, and never counted twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.demo.catalogue import render
from data_prep.generate import cost, workers
from data_prep.generate.batch_api import BatchRunner
from data_prep.generate.batch_state import batches_spent, handed_in
from data_prep.generate.prompt import FiveQuestions
from data_prep.generate.quota.budget import Budget
from data_prep.records import Reply
from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import RunDir
from jobs.shards.journal import ReadReport
from jobs.shards.store import read_records
from tests.conftest import ROOT, environment, launch, launch_args, launch_command, output, write_config
from tests.data_prep.generate.conftest import Shop
from tests.data_prep.generate.test_batch_api import answered, ask, batch_settings, folder_of, made

MODEL, OTHER = "gemini-3.5-flash-lite", "gemini-3.1-flash-lite"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    render(folder, products=40, seed=3)
    return folder


@pytest.fixture
def server(collection: Path) -> Iterator[StandIn]:
    with StandIn(collection / "facts.jsonl", StandInOptions(batch_seconds=4.0)) as server:
        yield server


def arguments(folder: Path, collection: Path, server: StandIn, **changes: object) -> list[str | Path]:
    batch = {"requests": 50, "at_least": 3, "poll_seconds": 0.2}
    section = {
        "endpoint": server.url,
        "shards": 1,
        "model": MODEL,
        "tier": "batch",
        "batch": batch,
        "min_usable": 0,
        "timeout": 5.0,
        "prices": {"input": 100.0, "output": 400.0},
        **changes,
    }
    config = write_config(folder / "run.yaml", collection, generate=section)
    return [*launch_args(config, folder / "run"), "--stages", "prepare,validate,generate"]


def stop_when_handed_in(options: list[str | Path], server: StandIn) -> None:
    """Launch, and end the launch by a signal once its batch is under way."""
    process = subprocess.Popen(launch_command(*options), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while not made(server):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def replies(run: RunDir) -> list[Reply]:
    """Every reply among the records."""
    found = (record.outcome(Reply).value for record in read_records(run.store("generate"), ReadReport()))
    return [reply for reply in found if reply is not None]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": OTHER}, f"'{MODEL}' → '{OTHER}'"),
        pytest.param({"temperature": 0.5}, "temperature: None → 0.5", marks=pytest.mark.slow),
    ],
)
def test_batches_under_other_settings_stop_a_launch_until_they_are_recorded(
    collection: Path, tmp_path: Path, server: StandIn, change: dict[str, object], named: str
) -> None:
    run, options = RunDir(tmp_path / "run"), arguments(tmp_path, collection, server)
    stop_when_handed_in(options, server)
    products = sum(len(batch.intent.asked) for batch in handed_in(run.batches))
    refused = launch(*arguments(tmp_path, collection, server, **change))
    said = " ".join(output(refused).split())
    assert refused.returncode != 0 and named in said and f"{products} products are in batches" in said
    (batch,) = handed_in(run.batches)
    assert f"${batch.intent.reserved:.2f}" in said
    assert made(server) == 1 and not replies(run)
    done = launch(*arguments(tmp_path, collection, server))
    assert done.returncode == 0, output(done)
    assert made(server) == 1 and {reply.model for reply in replies(run)} == {MODEL}
    assert len(replies(run)) == products == sum(answered(server).values())


def test_replies_of_a_batch_are_kept_when_the_stage_is_deleted(
    collection: Path, tmp_path: Path, server: StandIn
) -> None:
    run, options = RunDir(tmp_path / "run"), arguments(tmp_path, collection, server)
    first = launch(*options)
    assert first.returncode == 0, output(first)
    paid, spent = len(replies(run)), batches_spent(run.batches)
    shutil.rmtree(run.stage_folder("generate"))
    again = launch(*options)
    assert again.returncode == 0, output(again)
    assert len(replies(run)) == paid == sum(answered(server).values()) and made(server) == 1
    assert batches_spent(run.batches) == spent and spent.reserved == 0
    assert spent.paid == pytest.approx(sum(reply.dollars for reply in replies(run)))


def test_without_the_batch_tier_the_batches_of_earlier_launches_are_waited_for(
    collection: Path, tmp_path: Path, server: StandIn
) -> None:
    run, options = RunDir(tmp_path / "run"), arguments(tmp_path, collection, server)
    stop_when_handed_in(options, server)
    done = launch(*arguments(tmp_path, collection, server, tier="standard"))
    assert done.returncode == 0, output(done)
    assert {reply.tier for reply in replies(run)} == {"batch"} and made(server) == 1
    assert set(Counter(entry["image"] for entry in server.entries if entry["outcome"] == "ok").values()) == {1}


def test_a_reply_about_an_image_that_was_exchanged_is_kept_and_never_the_new_images(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    exchanged, like = shop.products[0], shop.products[1]
    with StandIn(shop.answers, StandInOptions(batch_seconds=1.0)) as server:
        settings = batch_settings(server, batch={"requests": 25})
        ask(shop, settings, stopping=lambda: made(server) == 1)
        (shop.root / exchanged.image_path).write_bytes((shop.root / like.image_path).read_bytes())
        outcomes = ask(shop, settings)
    assert len(outcomes.ok) == len(shop.products)
    (reply,) = outcomes.ok[exchanged.item_id]
    assert reply.tier == "standard" and "thing 1?" in (reply.text or "")
    (batch,) = handed_in(folder_of(shop))
    assert exchanged.item_id in (batch.folder / "results.jsonl").read_text()
    assert "about a product that has changed since" in capsys.readouterr().out


def test_batches_of_other_settings_are_not_touched_by_a_task(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        ask(shop, batch_settings(server, batch={"requests": 25}))
        outcomes = ask(shop, batch_settings(server, model=OTHER, batch={"requests": 25}))
        assert made(server) == 2
    assert {reply.model for of in outcomes.ok.values() for reply in of} == {OTHER}


def test_a_batch_that_two_tasks_settle_counts_once(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=0.5)) as server:
        settings = batch_settings(server, batch={"requests": 10}, prices={"input": 1.0, "output": 4.0})
        cap = 10 * cost.max_request_cost(settings, tier="batch") + 0.001
        settings = settings.model_copy(update={"max_dollars": cap})
        ask(shop, settings, shop.products[:10], stopping=lambda: made(server) == 1)
        pools, runners = [], []
        for _ in range(2):
            prompter = FiveQuestions(settings, shop.root)
            pool = workers.WorkerPool(prompter, server.url, shop.ledger, shop.quota, lambda: False)
            pools.append(pool)
            runners.append(BatchRunner(prompter, pool.dispatcher, pool.replies, folder_of(shop), lambda: False))
        for runner in runners:
            runner._folder.read()  # before the other one has settled it
        time.sleep(0.6)
        for runner in runners:
            runner._poll(runner._folder.batches[0])
            assert runner._folder.batches[0].state.endswith("succeeded")
        spent = batches_spent(folder_of(shop))
        assert spent.reserved == 0 and spent.paid == pytest.approx(10 * (900 + 150 * 4) / 1e6 / 2)
        more = sum(pool.dispatcher.budget.reserve(0.001) for pool in pools for _ in range(100))
        assert 0.001 * more <= cap - spent.paid


def test_a_batch_under_way_counts_with_all_that_it_may_cost(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(batch_seconds=3600.0)) as server:
        settings = batch_settings(server, batch={"requests": 25})
        ask(shop, settings, stopping=lambda: made(server) == 1)
    spent = batches_spent(folder_of(shop))
    most = len(shop.products) * cost.max_request_cost(settings, tier="batch")
    assert (spent.paid, spent.reserved) == pytest.approx((0.0, most))
    assert not Budget(shop.ledger, most).reserve(0.001)
