"""One quota for several processes that know nothing of each other, proved from the server's side."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from data_prep import asking, quota
from data_prep.settings_generate import QuotaSettings
from data_prep.stand_in import StandIn
from tests.generate.conftest import Outcomes, make_shop, settings_for


def _task(folder: str, url: str, part: int, parts: int, per_minute: int) -> None:
    shop = make_shop(Path(folder) / f"task-{part}", 60)
    settings = settings_for(url, quota={"requests_per_minute": per_minute}, concurrency=8, max_retries=0)
    outcomes = Outcomes()
    asking.ask_all(
        iter(shop.products[part::parts]),
        outcomes,
        image_root=shop.root,
        settings=settings,
        quota_folder=Path(folder) / "quota",
        previous={},
    )
    assert not outcomes.failed, outcomes.failed


def test_four_tasks_at_once_use_the_quota_and_never_pass_it(tmp_path: Path) -> None:
    per_minute, count = 600, 60
    shop = make_shop(tmp_path / "shop", count)
    with StandIn(shop.answers, latency=0.5) as server:
        spawn = multiprocessing.get_context("spawn")
        tasks = [spawn.Process(target=_task, args=(str(tmp_path), server.url, i, 4, per_minute)) for i in range(4)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    assert [task.exitcode for task in tasks] == [0] * 4
    assert len(server.entries) == count
    times = sorted(entry["at"] for entry in server.entries)
    spacing = quota.Permits(tmp_path / "x", per_minute, lambda: False).spacing
    # Request k after a given one comes at least k permits later, but for how late either may leave.
    for first in range(count):
        for later in range(first + 1, count):
            assert times[later] - times[first] >= (later - first) * spacing - quota.LATE - 2 * quota.SKEW


def _take_all(folder: str, count: int, out: str) -> None:
    mine = [i for i in range(count) if quota.take(Path(folder) / str(i))]
    Path(out).write_text("\n".join(map(str, mine)))


def test_no_permit_is_taken_twice(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    outs = [tmp_path / f"out-{i}" for i in range(3)]
    tasks = [spawn.Process(target=_take_all, args=(str(tmp_path / "p" / "q"), 500, str(out))) for out in outs]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    taken = [int(line) for out in outs for line in out.read_text().split()]
    assert sorted(taken) == list(range(500))


def test_permits_are_so_far_apart_that_no_minute_holds_more_than_the_quota(tmp_path: Path) -> None:
    for per_minute in (1, 15, 60, 1000, 2000):
        spacing = quota.Permits(tmp_path, per_minute, lambda: False).spacing
        window = 60 + quota.LATE + 2 * quota.SKEW
        assert window / spacing <= per_minute * (1 + 1e-9)
        assert 60 / spacing >= 0.95 * per_minute


def test_daily_requests_are_counted_over_restarts(tmp_path: Path) -> None:
    sent = 0
    for _ in range(3):  # three tasks, one after the other
        project = quota.ProjectQuota(tmp_path, "mine", QuotaSettings(requests_per_day=10), lambda: False)
        for _ in range(4):
            try:
                sent += project.wait()
            except quota.DailyQuotaGone:
                break
    assert sent == 10


def test_raising_the_cap_does_not_forget_what_was_spent(tmp_path: Path) -> None:
    def spend(cap: float) -> int:
        budget, requests = quota.Budget(tmp_path, cap, dearest=0.001), 0
        with pytest.raises(quota.BudgetGone):
            while True:
                budget.reserve()
                budget.settle(0.001)
                requests += 1
        return requests

    assert spend(0.010) == 10
    assert spend(0.010) == 0
    assert spend(0.015) == 5


def test_after_the_clock_was_set_nothing_is_sent_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    permits = quota.Permits(tmp_path, 6000, lambda: False)
    slept: list[float] = []
    monkeypatch.setattr(permits, "_sleep_until", lambda due: slept.append(due - time.time()) or True)
    true_time = time.time
    monkeypatch.setattr(quota.time, "time", lambda: true_time() + 3600)
    permits.wait()
    assert max(slept) >= 60
