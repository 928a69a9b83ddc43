"""One quota for several processes that know nothing of each other, proved from the server's side."""

from __future__ import annotations

import datetime
import multiprocessing
import random
import time
import types
from pathlib import Path

import pytest

from data_prep.generate import waiting, workers
from data_prep.generate.clients.errors import DailyQuotaExhausted
from data_prep.generate.quota import allowance, budget, rate_limit
from data_prep.generate.settings import QuotaSettings
from data_prep.outcomes import UserError
from data_prep.stand_in import StandIn, StandInOptions
from tests.data_prep.generate.conftest import Outcomes, make_shop, settings_for


def _task(folder: str, url: str, part: int, parts: int, per_minute: int) -> None:
    shop = make_shop(Path(folder) / f"task-{part}", 60)
    settings = settings_for(url, quota={"requests_per_minute": per_minute}, concurrency=8, max_retries=0)
    outcomes = Outcomes()
    workers.generate_all(
        outcomes.todos(shop.products[part::parts]),
        image_root=shop.root,
        settings=settings,
        ledger=Path(folder) / "ledger",
        quota_folder=Path(folder) / "quota",
    )
    assert not outcomes.failed, outcomes.failed


def test_four_tasks_at_once_use_the_quota_and_never_pass_it(tmp_path: Path) -> None:
    per_minute, count = 600, 60
    shop = make_shop(tmp_path / "shop", count)
    with StandIn(shop.answers, StandInOptions(latency=0.5)) as server:
        spawn = multiprocessing.get_context("spawn")
        tasks = [spawn.Process(target=_task, args=(str(tmp_path), server.url, i, 4, per_minute)) for i in range(4)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    assert [task.exitcode for task in tasks] == [0] * 4
    assert len(server.entries) == count
    times = sorted(entry["at"] for entry in server.entries)
    spacing = rate_limit.RateLimitSlots(tmp_path / "x", per_minute, lambda: False).spacing
    # Request k after a given one comes at least k slots later, except for the delay that either may have.
    for first in range(count):
        for later in range(first + 1, count):
            assert (
                times[later] - times[first]
                >= (later - first) * spacing - rate_limit.MAX_DELAY - 2 * rate_limit.CLOCK_SKEW
            )


def _take_all(folder: str, count: int, out: str) -> None:
    mine = [i for i in range(count) if allowance.claim(Path(folder) / str(i))]
    Path(out).write_text("\n".join(map(str, mine)))


def test_no_slot_is_claimed_twice(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    outs = [tmp_path / f"out-{i}" for i in range(3)]
    tasks = [spawn.Process(target=_take_all, args=(str(tmp_path / "p" / "q"), 500, str(out))) for out in outs]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    taken = [int(line) for out in outs for line in out.read_text().split()]
    assert sorted(taken) == list(range(500))


def test_slots_are_so_far_apart_that_no_minute_holds_more_than_the_quota(tmp_path: Path) -> None:
    for per_minute in (1, 15, 60, 1000, 2000):
        spacing = rate_limit.RateLimitSlots(tmp_path, per_minute, lambda: False).spacing
        window = 60 + rate_limit.MAX_DELAY + 2 * rate_limit.CLOCK_SKEW
        assert window / spacing <= per_minute * (1 + 1e-9)
        assert 60 / spacing >= 0.95 * per_minute


def test_daily_requests_are_counted_over_restarts(tmp_path: Path) -> None:
    sent = 0
    for _ in range(3):  # three tasks, one after the other
        project = rate_limit.ProjectQuota(tmp_path, "mine", QuotaSettings(requests_per_day=10), lambda: False)
        for _ in range(4):
            try:
                sent += project.wait() is not None
            except DailyQuotaExhausted:
                break
    assert sent == 10


# (UTC, requests that one more in a day of two is for): the day ends at midnight in California, and not at midnight UTC.
DAYS = {
    "winter": ("2026-01-15 07:59", "2026-01-15 08:01"),
    "summer": ("2026-07-15 06:59", "2026-07-15 07:01"),
    "the night before clocks are set forward": ("2026-03-08 07:59", "2026-03-08 08:01"),
    "the night after": ("2026-03-09 06:59", "2026-03-09 07:01"),
    "the night before clocks are set back": ("2026-11-01 06:59", "2026-11-01 07:01"),
    "the night after that": ("2026-11-02 07:59", "2026-11-02 08:01"),
}


@pytest.mark.parametrize("night", DAYS)
def test_a_day_of_requests_ends_at_midnight_pacific_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, night: str
) -> None:
    clock = _Simulated(monkeypatch)
    before, after = (datetime.datetime.fromisoformat(f"{time}+00:00").timestamp() for time in DAYS[night])
    project = rate_limit.ProjectQuota(tmp_path, "mine", QuotaSettings(requests_per_day=1), lambda: False)
    clock.now = before - 9 * 3600  # midnight UTC comes later
    assert project.wait() is not None
    clock.now = before
    with pytest.raises(DailyQuotaExhausted):
        project.wait()
    assert rate_limit.next_day(before).timestamp() == after - 60
    clock.now = after
    assert project.wait() is not None
    assert rate_limit.next_day(after) > datetime.datetime.fromtimestamp(after + 22 * 3600, datetime.UTC)


def test_the_counts_of_days_long_past_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Simulated(monkeypatch)
    project = rate_limit.ProjectQuota(tmp_path, "mine", QuotaSettings(requests_per_day=5), lambda: False)
    for _ in range(6):
        project.wait()
        clock.now += 24 * 3600
    assert len(list(tmp_path.glob("day-*"))) == 3


def test_slots_of_long_ago_are_removed_once_a_minute_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(rate_limit, "time", types.SimpleNamespace(time=time.time, monotonic=lambda: now[0]))
    slots = rate_limit.RateLimitSlots(tmp_path, 10, lambda: False)
    slots.claim(0.0)
    (tmp_path / "notes").mkdir()
    for passed, kept in ((59.0, True), (1.0, False)):
        now[0] += passed
        begin = slots.claim(80_000.0)
        assert begin is not None and begin > 80_000.0
        assert (tmp_path / "0").exists() is kept
    assert {path.name for path in tmp_path.iterdir()} == {"notes", str(int(begin / slots.spacing) // 64)}


def test_raising_the_cap_does_not_forget_what_was_spent(tmp_path: Path) -> None:
    def spend(cap: float) -> int:
        money, requests = budget.Budget(tmp_path, cap), 0
        with pytest.raises(budget.BudgetExhausted):
            while True:
                money.settle_request(money.reserve_request(0.001), 0.001)
                requests += 1
        return requests

    assert spend(0.010) == 10
    assert spend(0.010) == 0
    assert spend(0.015) == 5


@pytest.mark.parametrize("cap", [0.0005, 0.0104, 9.9995, 10.005, 12.34, 100.05, 250.0])
def test_a_large_budget_takes_few_folders_and_none_is_passed(tmp_path: Path, cap: float) -> None:
    money, drawn = budget.Budget(tmp_path, cap), 0.0
    while money.reserve(0.01):
        drawn += 0.01
    assert drawn <= cap + 1e-6
    assert cap < 0.01 or drawn >= 0.99 * cap - 0.12  # what is less than a piece is not spent
    assert sum(1 for _ in tmp_path.glob("dollars/*/*")) <= 10_000 + max(0, cap - 10) * 100


def test_a_clock_that_was_set_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0, 500.0]
    monkeypatch.setattr(rate_limit, "time", types.SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[1]))
    clock = rate_limit.Clock()
    now[:] = [1_000_060.0, 560.0]
    assert not clock.jumped()
    for step in (-30.0, 30.0):
        now[0] += step
        assert clock.jumped() and not clock.jumped()


def test_after_the_clock_was_set_nothing_is_sent_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = rate_limit.ProjectQuota(tmp_path, "mine", QuotaSettings(requests_per_minute=6000), lambda: False)
    slept: list[float] = []
    monkeypatch.setattr(project, "_sleep_until", lambda due: slept.append(due - time.time()) or True)
    monkeypatch.setattr(
        rate_limit,
        "time",
        types.SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic, sleep=time.sleep),
    )
    project.wait()
    assert max(slept) >= 60


def test_a_task_that_stops_during_the_minute_after_the_clock_was_set_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = rate_limit.ProjectQuota(tmp_path, "mine", QuotaSettings(requests_per_minute=6000), lambda: False)
    monkeypatch.setattr(project, "_sleep_until", lambda due: due - project._clock.now() < 60)
    monkeypatch.setattr(
        rate_limit,
        "time",
        types.SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic, sleep=time.sleep),
    )
    assert project.wait() is None
    assert "the clock was set: pausing requests for a minute" in capsys.readouterr().out


class _Simulated:
    """Time that passes only where the quota sleeps, so that an hour of requests takes a second.

    It takes the place of the module ``time`` in the modules that wait for the quota alone: another test's server that still sleeps in a thread of this
    process must not move it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for module in (rate_limit, waiting):
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("cost", ["little", "most", "mixed"])
@pytest.mark.parametrize("requests_per_minute", [None, 40, 400])
def test_no_minute_has_more_tokens_than_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: str, requests_per_minute: int | None
) -> None:
    clock = _Simulated(monkeypatch)
    limit, most, latency = 250_000, 2374, 2.0
    settings = QuotaSettings(tokens_per_minute=limit, requests_per_minute=requests_per_minute)
    tasks = [rate_limit.ProjectQuota(tmp_path, "mine", settings, lambda: False, most) for _ in range(3)]
    rng, sent, pending = random.Random(0), [], []
    start = clock.now
    while clock.now < start + 300:
        for request in [p for p in pending if p[0] <= clock.now]:
            pending.remove(request)
            _, task, permission, tokens = request
            task.settle(permission, tokens)
        task = rng.choice(tasks)
        permission = task.wait()
        assert permission is not None
        tokens = {"little": 1050, "most": most, "mixed": rng.choice([300, 1050, most])}[cost]
        sent.append((clock.now, tokens))
        if rng.random() < 0.99:  # of the others nothing is ever heard: killed
            pending.append((clock.now + latency, task, permission, tokens))
    for begin, _ in sent:
        assert sum(tokens for at, tokens in sent if begin <= at < begin + 60) <= limit
        window = [at for at, _ in sent if begin <= at < begin + 60]
        assert requests_per_minute is None or len(window) <= requests_per_minute
    used = sum(tokens for at, tokens in sent if at >= start + 60) / 4  # tokens a minute, after the first
    possible = min(limit, (requests_per_minute or 1e9) * (sum(tokens for _, tokens in sent) / len(sent)))
    assert used >= 0.5 * possible  # what is set aside and not taken can be lent to a request in time, or not


def _sent_in_five_minutes(
    clock: _Simulated, tasks: list[rate_limit.ProjectQuota], tokens: int, latency: float
) -> list[float]:
    """When each request left, of tasks whose requests take ``tokens`` and are answered after ``latency`` seconds."""
    rng, sent, pending = random.Random(0), [], []
    start = clock.now
    while clock.now < start + 300:
        for request in [p for p in pending if p[0] <= clock.now]:
            pending.remove(request)
            _, task, permission = request
            task.settle(permission, tokens)
        task = rng.choice(tasks)
        permission = task.wait()
        assert permission is not None
        sent.append(clock.now)
        pending.append((clock.now + latency, task, permission))
    return sent


@pytest.mark.parametrize("factor", [1.77, 4.0])
def test_requests_that_take_more_tokens_than_expected_make_the_next_ones_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    clock, limit, expected = _Simulated(monkeypatch), 250_000, 2374
    settings = QuotaSettings(tokens_per_minute=limit)
    tasks = [rate_limit.ProjectQuota(tmp_path, "mine", settings, lambda: False, expected) for _ in range(2)]
    tokens = int(factor * expected)
    sent = _sent_in_five_minutes(clock, tasks, tokens, latency=2.0)
    most = max(tokens * sum(begin <= at < begin + 60 for at in sent) for begin in sent)
    print(f"{factor:.0%} of the expected tokens: {most / limit:.0%} of the quota in the fullest minute")
    assert most <= limit + (tokens - expected)


def test_runs_with_requests_of_other_sizes_share_the_tokens_of_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, limit = _Simulated(monkeypatch), 250_000
    settings = QuotaSettings(tokens_per_minute=limit)
    runs = [rate_limit.ProjectQuota(tmp_path, "mine", settings, lambda: False, most) for most in (1500, 2374, 9000)]
    sent = _sent_in_five_minutes(clock, runs, 1500, latency=2.0)
    assert max(1500 * sum(begin <= at < begin + 60 for at in sent) for begin in sent) <= limit


def test_a_request_larger_than_the_tokens_of_a_minute_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_output_tokens"):
        rate_limit.ProjectQuota(tmp_path, "mine", QuotaSettings(tokens_per_minute=1000), lambda: False, 3724)


def test_the_stand_in_refuses_more_tokens_than_its_quota(tmp_path: Path) -> None:
    shop, outcomes = make_shop(tmp_path / "shop", 6), Outcomes()
    with (
        StandIn(shop.answers, StandInOptions(tokens_per_minute=3 * 1050, retry_delay=0.0)) as server,
        pytest.raises(UserError, match="status_429"),  # a quota says nothing about a product: none is given up
    ):
        workers.generate_all(
            outcomes.todos(shop.products),
            image_root=shop.root,
            settings=settings_for(server.url, outage_minutes=0.001),
            ledger=shop.ledger,
            quota_folder=shop.quota,
        )
    assert len(outcomes.ok) == 3 and not outcomes.failed
