"""Money: what was spent is known whatever was deleted, killed or set later, and no cap is ever passed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from data_prep.demo.catalogue import render
from data_prep.generate import cost
from data_prep.generate.quota.budget import Budget, BudgetExhausted
from data_prep.generate.quota.spending import requests_spent
from data_prep.outcomes import UserError
from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import RunDir
from jobs.run.run import load_run
from jobs.stages.generate import Generate
from tests.conftest import ROOT, environment, launch, launch_args, launch_command, output, write_config
from tests.data_prep.generate.conftest import Shop, settings_for
from tests.data_prep.generate.test_workers import ask

PAID = (900 * 0.1 + 150 * 0.4) / 1e6  # dollars of one reply of the stand-in


def paid(server: StandIn) -> float:
    """Dollars that the server would bill."""
    return PAID * sum(entry["outcome"] == "ok" for entry in server.entries)


def test_a_cap_that_is_set_later_knows_what_was_spent_without_one(shop: Shop) -> None:
    with StandIn(shop.answers) as server:
        ask(shop, settings_for(server.url))
        spent = requests_spent(shop.ledger)
        assert spent.paid == pytest.approx(12 * PAID) and spent.reserved == 0
        with pytest.raises(UserError, match="max_dollars"):
            ask(shop, settings_for(server.url, max_dollars=12 * PAID))
        assert len(server.entries) == 12
        cap = 12 * PAID + 0.0015
        with pytest.raises(UserError, match="max_dollars"):
            ask(shop, settings_for(server.url, max_dollars=cap), shop.products * 20)
        assert len(server.entries) > 12 and paid(server) <= cap
    assert requests_spent(shop.ledger).paid == pytest.approx(paid(server))


def test_what_a_task_did_not_need_is_left_to_the_next(tmp_path: Path) -> None:
    requests = 0
    for _ in range(20):  # tasks that send one request each; all of the cap but the last request's reserve can be used
        budget = Budget(tmp_path, 0.010)
        try:
            budget.settle_request(budget.reserve_request(0.004), 0.001)
            requests += 1
        except BudgetExhausted:
            break
        finally:
            budget.close()
    assert requests == 7 and requests_spent(tmp_path).paid == pytest.approx(0.007)


def test_what_was_left_is_taken_by_one_task_only(tmp_path: Path) -> None:
    first = Budget(tmp_path, 0.005)
    first.settle_request(first.reserve_request(0.005), 0.001)
    first.close()
    tasks = [Budget(tmp_path, 0.005) for _ in range(3)]
    assert sum(task.reserve(0.004) for task in tasks) == 1


def test_what_is_released_can_be_reserved_again_by_any_task(tmp_path: Path) -> None:
    first = Budget(tmp_path, 0.005)
    assert first.reserve(0.005) and not first.reserve(0.001)
    first.release(0.004)
    assert first.reserve(0.004)


def test_a_closed_ledger_file_is_on_the_disk_and_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronized: dict[str, int] = {}
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synchronized[Path(f"/proc/self/fd/{descriptor}").readlink().name] = os.fstat(descriptor).st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    before = len(list(Path("/proc/self/fd").iterdir()))
    budget = Budget(tmp_path, 0.010)
    budget.settle_request(budget.reserve_request(0.004), 0.001)
    budget.close()
    (file,) = (tmp_path / "spending").glob("*.jsonl")
    assert synchronized[file.name] == file.stat().st_size > 0
    assert "spending" in synchronized, "after a power cut the file must still be in its folder"
    assert file.stat().st_mode & 0o777 & ~0o644 == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("cap", "allowed"), [(0.001, 0), (0.002, 0), (0.005, 3), (0.010, 8), (0.012, 10)])
def test_a_cap_below_what_was_claimed_allows_what_was_not_spent_of_it(tmp_path: Path, cap: float, allowed: int) -> None:
    first = Budget(tmp_path, None)
    first.settle_request(first.reserve_request(0.010), 0.002)
    first.close()
    second = Budget(tmp_path, cap)
    assert sum(second.reserve(0.001) for _ in range(20)) == allowed


def test_a_request_that_was_never_settled_counts_with_all_that_it_had_reserved(tmp_path: Path) -> None:
    killed = Budget(tmp_path, 0.010)
    killed.settle_request(killed.reserve_request(0.004), 0.001)
    killed.reserve_request(0.004)
    (file,) = (tmp_path / "spending").glob("*.jsonl")
    with file.open("ab") as torn:
        torn.write(b'\n{"request": 2, "pa')
    spent = requests_spent(tmp_path)
    assert (spent.paid, spent.reserved) == pytest.approx((0.001, 0.004))
    again = Budget(tmp_path, 0.010)
    assert sum(again.reserve(0.001) for _ in range(20)) == 5  # 0.010 less the 0.005 that the killed task had claimed


def test_a_request_that_timed_out_counts_as_the_most_expensive_one(shop: Shop) -> None:
    with StandIn(shop.answers, StandInOptions(faults={"hang": 1.0})) as server:
        prices = {"input": 1.0, "output": 4.0}
        settings = settings_for(server.url, timeout=0.3, max_retries=0, concurrency=1, prices=prices)
        each = cost.max_request_cost(settings)
        with pytest.raises(UserError, match="max_dollars"):
            ask(shop, settings.model_copy(update={"max_dollars": 2.5 * each}))
        assert len(server.entries) == 2
    assert requests_spent(shop.ledger).paid == pytest.approx(2 * each)


class Paying:
    """A run whose requests cost money."""

    def __init__(self, folder: Path, server: StandIn) -> None:
        self.catalogue, self.run, self._folder, self._server = (
            folder / "catalogue",
            RunDir(folder / "run"),
            folder,
            server,
        )

    def arguments(self, **changes: object) -> list[str | Path]:
        section = {
            "endpoint": self._server.url,
            "shards": 1,
            "max_output_tokens": 512,
            "min_usable": 0,
            "prices": {"input": 0.10, "output": 0.40},
            **changes,
        }
        config = write_config(self._folder / "run.yaml", self.catalogue, generate=section)
        return [*launch_args(config, self.run.path), "--stages", "prepare,validate,generate"]

    def spent(self) -> float:
        return requests_spent(self.run.ledger).paid


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    render(folder / "catalogue", products=40, seed=3)
    return folder


@pytest.fixture
def folder(collection: Path, tmp_path: Path) -> Path:
    (tmp_path / "catalogue").symlink_to(collection / "catalogue")
    return tmp_path


def test_deleting_a_stage_does_not_reset_what_was_spent_and_no_message_says_to(folder: Path) -> None:
    cap = 50 * PAID
    with StandIn(folder / "catalogue" / "facts.jsonl") as server:
        paying = Paying(folder, server)
        first = launch(*paying.arguments(max_dollars=cap))
        assert first.returncode == 0, output(first)
        products = len(server.entries)
        shutil.rmtree(paying.run.stage_folder("generate"))
        second = launch(*paying.arguments(max_dollars=cap))
        assert second.returncode == 1 and "max_dollars" in output(second)
        assert products < len(server.entries) and paid(server) <= cap
        assert "ledger" not in output(second)
    assert paying.spent() == pytest.approx(paid(server))


@pytest.mark.parametrize("name", ["quota", "batches"])
def test_a_run_of_an_older_version_with_its_money_elsewhere_is_refused(folder: Path, name: str) -> None:
    with StandIn(folder / "catalogue" / "facts.jsonl") as server:
        paying = Paying(folder, server)
        (paying.run.stage_folder("generate") / name).mkdir(parents=True)
        paying.run.run_file.touch()
        done = launch(*paying.arguments())
    assert done.returncode != 0 and "made by an older version" in output(done) and not server.entries


def test_status_says_what_was_paid_for_replies_that_are_gone(folder: Path) -> None:
    with StandIn(folder / "catalogue" / "facts.jsonl") as server:
        paying = Paying(folder, server)
        options = paying.arguments(prices={"input": 100.0, "output": 400.0})
        for _ in range(2):
            shutil.rmtree(paying.run.stage_folder("generate"), ignore_errors=True)
            done = launch(*options)
            assert done.returncode == 0, output(done)
        run, config = load_run(paying.run.path)
        (note,) = [note for note in Generate(run, config).status().notes if "paid in all" in note]
    each = PAID * 1000
    assert f"${len(server.entries) * each:,.2f} were paid in all" in note
    assert f"cost ${len(server.entries) / 2 * each:,.2f}" in note


def test_after_kill_9_the_requests_in_flight_count_as_spent(folder: Path) -> None:
    os.environ.setdefault("GEMINI_API_KEY", "not-a-key")
    with StandIn(folder / "catalogue" / "facts.jsonl", StandInOptions(latency=1.0)) as server:
        paying = Paying(folder, server)
        options = paying.arguments(concurrency=4)
        process = subprocess.Popen(
            launch_command(*options), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        while sum(entry["outcome"] == "ok" for entry in server.entries) < 8:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2.5)  # what was in flight is answered, and billed
        spent, billed = requests_spent(paying.run.ledger), paid(server)
        assert spent.reserved > 0 and billed <= spent.paid + spent.reserved + 1e-9
        done = launch(*options)
        assert done.returncode == 0, output(done)
    spent = requests_spent(paying.run.ledger)
    assert spent.paid <= paid(server) + 1e-9 <= spent.paid + spent.reserved + 1e-9
    twice = Counter(entry["image"] for entry in server.entries if entry["outcome"] == "ok")
    assert sum(count - 1 for count in twice.values()) <= 4
