"""items = done + failed + remaining, at any moment, after any kill, in any number of shards."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Reply
from jobs.run.layout import ShardStore
from jobs.shards.digest import digest
from jobs.shards.journal import JournalWriter, ReadReport, Record, journal_files
from jobs.shards.loop import pending_shards, run_shard
from jobs.shards.marker import ShardMarker
from jobs.shards.progress import Limits, Progress, made_of, settled_outcomes
from jobs.shards.store import freeze_shards, read_records, shard_of
from tests.conftest import heed_signals
from tests.jobs.shards.loop_worker import Square, Squares

ROOT = Path(__file__).resolve().parents[3]
ITEMS = 60
FAILING = {f"item-{n}" for n in range(ITEMS) if n % 7 == 3}


def run_all(folder: Path, shards: int, items: int = ITEMS) -> None:
    work = Squares(folder, items)
    freeze_shards(work.store, shards)
    for shard in range(shards):
        assert run_shard(work, shard, shards, lambda: False).remaining == 0


def results(folder: Path, max_tries: int = 50) -> dict[str, object]:
    work = Squares(folder, ITEMS, max_tries=max_tries)
    outcomes = settled_outcomes(work, "", made_of(work))
    return {key: o.value if isinstance(o, Ok) else o.reason for key, o in outcomes.items()}


def expected() -> dict[str, object]:
    return {f"item-{n}": "seventh" if n % 7 == 3 else Square(n * n) for n in range(ITEMS)}


def test_every_item_ends_done_or_failed_with_a_reason_and_is_counted_once(tmp_path: Path) -> None:
    run_all(tmp_path, 4)
    assert results(tmp_path) == expected()
    store = ShardStore(tmp_path / "stage")
    markers = [marker for shard in range(4) if (marker := ShardMarker.read(store, shard))]
    assert sum(m.items for m in markers) == ITEMS
    assert sum(m.failed for m in markers) == len(FAILING)
    assert all(m.items == m.done + m.failed for m in markers)
    assert {(m.attempts, m.repeated, m.damaged_lines, m.changed_files, m.answered) for m in markers} == {
        (1, 0, 0, 0, 0)
    }
    assert pending_shards(Squares(tmp_path, ITEMS), 4) == []


def test_at_its_end_a_shard_has_all_of_its_records_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, int] = {}  # of each file when it was last synchronized
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        sizes[Path(f"/proc/self/fd/{descriptor}").readlink().name] = os.fstat(descriptor).st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    run_all(tmp_path, 1)
    (path,) = journal_files(ShardStore(tmp_path / "stage").shard(0))
    assert sizes[path.name] == path.stat().st_size


def test_an_item_that_may_pass_is_tried_again_and_one_that_cannot_is_not(tmp_path: Path) -> None:
    run_all(tmp_path, 2)
    tries = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "tried").iterdir()}
    assert all(tries[key] == 1 for key in FAILING)
    assert tries["item-5"] == 3


def test_items_without_tries_left_get_some_when_the_limit_is_raised(tmp_path: Path) -> None:
    few = Squares(tmp_path, ITEMS, max_tries=2)
    freeze_shards(few.store, 2)
    for shard in range(2):
        run_shard(few, shard, 2, lambda: False)
    assert pending_shards(few, 2) == []
    assert results(tmp_path, max_tries=2)["item-5"] == "eleventh"
    more = Squares(tmp_path, ITEMS, max_tries=3)
    pending = pending_shards(more, 2)
    assert shard_of("item-5", 2) in pending
    for shard in pending:
        run_shard(more, shard, 2, lambda: False)
    assert results(tmp_path, max_tries=3) == expected() and pending_shards(more, 2) == []


@pytest.mark.parametrize("second", [1, 2, 7])
def test_a_run_resumed_with_another_number_of_shards_repeats_and_loses_nothing(tmp_path: Path, second: int) -> None:
    work = Squares(tmp_path, ITEMS)
    freeze_shards(work.store, 4)
    for shard in (1, 3):
        run_shard(work, shard, 4, lambda: False)
    before = {p.name: p.read_text() for p in (tmp_path / "tried").iterdir()}
    run_all(tmp_path, second)
    assert results(tmp_path) == expected()
    for name, text in before.items():
        assert (tmp_path / "tried" / name).read_text() == text, f"{name} was done again"
    assert pending_shards(Squares(tmp_path, ITEMS), second) == []
    if second < 4:  # the folders of the earlier shards lie beside the present ones, and no marker vouches for them
        lost = journal_files(work.store.shard(3))[0]
        lost.unlink()
        assert pending_shards(Squares(tmp_path, ITEMS), second) != [], f"nobody misses {lost}"


def test_items_that_were_added_later_are_the_only_ones_worked_on(tmp_path: Path) -> None:
    run_all(tmp_path, 3, items=40)
    before = len(list((tmp_path / "tried").iterdir()))
    assert pending_shards(Squares(tmp_path, ITEMS), 3) != []
    run_all(tmp_path, 3, items=ITEMS)
    assert before == 40
    assert results(tmp_path) == expected()


def test_killed_at_random_moments_it_ends_with_the_records_of_an_undisturbed_run(tmp_path: Path) -> None:
    rng = random.Random(4)
    command = [sys.executable, "-m", "tests.jobs.shards.loop_worker", str(tmp_path), str(ITEMS), "0", "1", "0.02"]
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            code = process.wait(timeout=rng.uniform(0.3, 0.9))
            assert code == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    else:
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert kills >= 2, "the kills came too late to show anything"
    assert results(tmp_path) == expected()
    recorded = Counter(r.key for r in read_records(ShardStore(tmp_path / "stage"), ReadReport()) if r.ok)
    assert set(recorded.values()) == {1}, "an item was recorded twice"
    tries = [len(p.read_text().splitlines()) for p in (tmp_path / "tried").iterdir()]
    flawless = sum(1 for n in range(ITEMS)) + 2 * sum(1 for n in range(ITEMS) if n % 11 == 5 and n % 7 != 3)
    assert sum(tries) <= flawless + kills, "more than the item in flight was repeated"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_ends_the_batch_and_asks_to_be_started_again(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.jobs.shards.loop_worker", str(tmp_path), "500", "0", "1", "0.02"]
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=heed_signals)
    while not (tmp_path / "tried").is_dir() or len(list((tmp_path / "tried").iterdir())) < 3:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    tried = {p.name for p in (tmp_path / "tried").iterdir()}
    assert len(tried) < 250, "after the signal the items were worked on as before, all 500 of them"
    recorded = {r.key for r in read_records(ShardStore(tmp_path / "stage"), ReadReport())}
    assert tried == recorded, "an item was worked on and not written"
    assert not ShardStore(tmp_path / "stage").done(0).exists()


def test_two_attempts_at_one_shard_at_once_do_no_harm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.jobs.shards.loop_worker", str(tmp_path), str(ITEMS), "0", "1", "0.01"]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(journal_files(ShardStore(tmp_path / "stage").shard(0))) == 2
    assert results(tmp_path) == expected()
    marker = ShardMarker.read(ShardStore(tmp_path / "stage"), 0)
    assert marker and marker.items == ITEMS == marker.done + marker.failed


def tries(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in (folder / "tried").iterdir()}


def test_an_item_whose_content_changed_is_done_again_alone_and_counts_when_set_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(tmp_path, 2)
    before, store = tries(tmp_path), ShardStore(tmp_path / "stage")
    records = len(list(read_records(store, ReadReport())))
    changed = Squares(tmp_path, ITEMS)
    changed.content = {"item-4": "other", "item-9": "other"}
    pending = pending_shards(changed, 2)
    assert pending == sorted({shard_of("item-4", 2), shard_of("item-9", 2)})
    assert settled_outcomes(changed, "", made_of(changed)).keys() == expected().keys() - changed.content.keys()
    for shard in pending:
        run_shard(changed, shard, 2, lambda: False)
    assert "items that have changed since" in capsys.readouterr().out
    assert {key for key, count in tries(tmp_path).items() if count != before[key]} == changed.content.keys()
    assert len(list(read_records(store, ReadReport()))) == records + 2, "nothing is deleted"
    done = tries(tmp_path)
    assert pending_shards(Squares(tmp_path, ITEMS), 2) == pending
    run_all(tmp_path, 2)
    assert results(tmp_path) == expected() and tries(tmp_path) == done


def test_under_other_settings_all_is_done_again_and_the_first_records_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(tmp_path, 1)
    before = tries(tmp_path)
    other = Squares(tmp_path, ITEMS, setting=2)
    assert pending_shards(other, 1) == [0] and settled_outcomes(other, "", made_of(other)) == {}
    run_shard(other, 0, 1, lambda: False)
    assert "60 items were made under other settings (setting: 1 → 2)" in capsys.readouterr().out
    assert all(count > before[key] for key, count in tries(tmp_path).items())
    done = tries(tmp_path)
    run_all(tmp_path, 1)
    assert tries(tmp_path) == done and results(tmp_path) == expected()


def test_what_was_paid_for_is_not_done_again_without_consent(tmp_path: Path) -> None:
    source = Asked(tmp_path, ["good"], 1)
    freeze_shards(source.store, 1)
    run_shard(source, 0, 1, lambda: False)
    for change in ("content", "settings"):
        again = Asked(tmp_path, ["good"], 1)
        again.paid = True  # type: ignore[misc]
        if change == "content":
            again.content = {"item-0": "other"}
        else:
            again._setting = 2
        with pytest.raises(UserError, match=r"1 items were paid for \(\$0\.(25|50)\).*--redo"):
            run_shard(again, 0, 1, lambda: False)
        assert again._texts == ["good"]
        again.may_redo = lambda: True  # type: ignore[method-assign]
        run_shard(again, 0, 1, lambda: False)
        assert again._texts == []


def test_a_damaged_record_is_done_again_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_all(tmp_path, 1)
    store = ShardStore(tmp_path / "stage")
    (path,) = journal_files(store.shard(0))
    data = bytearray(path.read_bytes())
    data[data.index(b'"square":4}') + 9] ^= 1
    path.write_bytes(data)
    store.done(0).unlink()
    run_all(tmp_path, 1)
    assert results(tmp_path) == expected()
    assert f"{path}:" in capsys.readouterr().out
    marker = ShardMarker.read(store, 0)
    assert marker and marker.damaged_lines == 1


def test_records_that_change_after_their_shard_was_finished_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(tmp_path, 1)
    store = ShardStore(tmp_path / "stage")
    for times in (1, 2):
        path = journal_files(store.shard(0))[-1]
        path.write_bytes(path.read_bytes()[:-20])
        run_all(tmp_path, 1)
        assert f"what it lost is done again: {path}" in capsys.readouterr().out
        marker = ShardMarker.read(store, 0)
        assert marker and marker.changed_files == times
        assert results(tmp_path) == expected()


def test_what_superseded_records_cost_is_the_sum_over_those_that_were_paid_for(tmp_path: Path) -> None:
    progress = Progress(Asked(tmp_path, [], 1), "present", {"item-0": "content"})
    for value in ({"dollars": 0.25}, {"dollars": 0.5}, {"square": 4}, None):
        assert not progress.read(Record("item-0", value is not None, "other", "present", value=value))
    superseded = progress.outdated()["item-0"]
    assert (superseded.dollars, superseded.paid, superseded.content, superseded.settings) == (0.75, True, True, "")


def test_a_success_counts_over_failures_whatever_came_first(tmp_path: Path) -> None:
    work = Squares(tmp_path, 1)
    settings = digest(work.settings(""))
    for attempt, outcome in (("a", Failed("x")), ("b", Ok(Square(1))), ("c", Ok(Square(4))), ("d", Failed("y"))):
        writer = JournalWriter(work.store.shard(0), attempt, settings)
        writer.append("item-0", outcome, work.made_from("item-0"))
        writer.close()
    assert settled_outcomes(work, "", made_of(work)) == {"item-0": Ok(Square(1))}


def test_shards_depend_on_the_name_alone_and_are_balanced() -> None:
    counts = Counter(shard_of(f"B{n:09d}", 16) for n in range(16_000))
    assert shard_of("B0ADB4121C", 16) == shard_of("B0ADB4121C", 16)
    assert len(counts) == 16
    assert max(counts.values()) < 1.2 * min(counts.values())


class Asked(Squares):
    """A stage whose only item gets paid replies: "no use" is recorded as a failure, "poor" breaks a rule, "good" none."""

    value_type = Reply

    def __init__(self, folder: Path, replies: Sequence[str], max_replies: int) -> None:
        super().__init__(folder, 1)
        self._texts, self.limits = list(replies), Limits(max_replies=max_replies)

    def rule_violations(self, reply: Reply) -> str | None:
        return None if reply.text == "good" else "poor"

    def process(self, todos: Iterator[Todo[str]]) -> None:
        for todo in todos:
            if self._texts:
                text = self._texts.pop(0)
                reply = Reply(todo.item, "I", text, "STOP", "m", 1, 1, 0.25)
                todo.record(Failed("cut_off", retry=True, value=reply) if text == "no use" else Ok(reply))


@pytest.mark.parametrize(
    ("replies", "max_replies", "done", "left"),
    [
        (["no use", "good"], 3, 1, []),
        (["no use", "no use", "good"], 2, 0, ["good"]),  # paid replies count against the limit, of use or not
        (["no use"], 1, 0, []),
        (["poor", "no use", "good"], 2, 1, ["good"]),  # one of them is usable
        (["no use", "poor"], 2, 1, []),
        (["no use"] * 4 + ["good"], 5, 1, []),  # max_tries is about what was not paid for
    ],
)
def test_a_paid_reply_of_no_use_is_never_done_and_counts_as_asked(
    tmp_path: Path, replies: list[str], max_replies: int, done: int, left: list[str]
) -> None:
    source = Asked(tmp_path, replies, max_replies)
    freeze_shards(source.store, 1)
    result = run_shard(source, 0, 1, lambda: False)
    assert (result.done, result.failed, result.remaining) == (done, 1 - done, 0)
    assert source._texts == left
    marker = ShardMarker.read(source.store, 0)
    assert marker is not None and marker.reasons == ({} if done else {"cut_off": 1})
    assert marker.answered == 1, "a reply of no use was a reply"


@pytest.mark.parametrize(("first", "done"), [("poor", 1), ("no use", 0)])
def test_a_raised_max_replies_asks_again_about_items_without_a_good_reply(
    tmp_path: Path, first: str, done: int
) -> None:
    source = Asked(tmp_path, [first], 1)
    freeze_shards(source.store, 1)
    result = run_shard(source, 0, 1, lambda: False)
    assert (result.done, result.failed) == (done, 1 - done) and pending_shards(source, 1) == []
    raised = Asked(tmp_path, ["good"], 2)
    assert pending_shards(raised, 1) == [0]
    run_shard(raised, 0, 1, lambda: False)
    assert raised._texts == [] and pending_shards(raised, 1) == []
    assert pending_shards(Asked(tmp_path, ["good"], 3), 1) == [], "a good reply is never asked for again"


OUTCOMES = {
    "good": Ok(Reply("item-0", "I", "good", "STOP", "m", 1, 1, 0.0)),
    "poor": Ok(Reply("item-0", "I", "poor", "STOP", "m", 1, 1, 0.0)),
    "no use": Failed("cut_off", retry=True, value=Reply("item-0", "I", None, "STOP", "m", 1, 1, 0.0)),
    "blocked": Failed("blocked", value=Reply("item-0", "I", None, "SAFETY", "m", 1, 1, 0.0)),
    "timeout": Failed("timeout", retry=True),
}


@given(st.lists(st.sampled_from(sorted(OUTCOMES)), max_size=6), st.integers(1, 4), st.randoms())
def test_the_order_of_outcomes_never_decides_what_counts(names: list[str], most: int, rng: random.Random) -> None:
    source = Asked(Path(tempfile.gettempdir()), [], most)
    source.limits = Limits(3, most)
    shuffled = rng.sample(names, len(names))
    one, other = (Progress(source, "f", {"item-0": ""}) for _ in range(2))
    for progress, order in ((one, names), (other, shuffled)):
        for name in order:
            progress.note("item-0", OUTCOMES[name])
    assert (one.done, one.failed, one.unsatisfied) == (other.done, other.failed, other.unsatisfied)
    if "good" in names or ("poor" in names and "blocked" in names):
        assert one.done == {"item-0"}, "a reply that can be used counts, whatever came after it"
