"""Full and read-only disks, runs that are moved or copied, and file times that mean nothing."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.outcomes import Failed, Ok
from jobs.run.layout import RunDir, ShardStore
from jobs.shards.digest import digest
from jobs.shards.journal import JournalWriter, ReadReport, journal_files
from jobs.shards.loop import pending_shards, run_shard
from jobs.shards.marker import ShardMarker
from jobs.shards.progress import made_of, settled_outcomes
from jobs.shards.store import freeze_shards, read_records
from tests.chaos.outcome import lost
from tests.conftest import launch, launch_args, output, write_config
from tests.jobs.shards.loop_worker import Square, Squares
from tests.jobs.shards.test_loop import ITEMS, expected, results

DATA_STAGES = "prepare,validate,generate,curate"
ENDLESS = 10_000  # kilobytes


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system that a test can fill up and make read-only."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system to fill")
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a tmpfs here: {error.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def resize(disk: Path, kilobytes: int) -> None:
    mount("-o", f"remount,size={kilobytes}k", disk)


def fill_until(disk: Path, free: int) -> None:
    """Leave this much space, to the page: the next larger write is cut short or fails."""
    status = os.statvfs(disk)
    size = status.f_bavail * status.f_frsize - free
    if size > 0:
        with (disk / "ballast").open("ab") as file:
            file.write(b"\0" * size)


def test_a_disk_that_fills_up_at_any_page_loses_no_written_record(disk: Path) -> None:
    """Each try has one page more, so the disk fills up in the settings, within a line and in done.json."""
    resize(disk, ENDLESS)
    failures, tried = Counter[str](), 0
    for pages in range(25):
        run = disk / "run"
        shutil.rmtree(run, ignore_errors=True)
        work = Squares(disk.parent / f"tried-{pages}", 8 * ITEMS)  # notes its tries on another disk
        work.store = ShardStore(run / "stage")
        store = work.store
        fill_until(disk, pages * 4096)
        tried += 1
        try:
            freeze_shards(store, 1)
            run_shard(work, 0, 1, lambda: False)
        except OSError as error:
            assert error.strerror == "No space left on device"
            kept = [record.key for record in read_records(store, ReadReport())] if store.folder.exists() else []
            assert ShardMarker.read(store, 0) is None, "it says done on a full disk"
            (disk / "ballast").unlink()
            whole = len(set(kept)) == 8 * ITEMS
            failures["in the marker" if whole else "in a record" if kept else "before the first record"] += 1
            freeze_shards(store, 1)
            assert run_shard(work, 0, 1, lambda: False).remaining == 0
            recorded = Counter(r.key for r in read_records(store, ReadReport()) if r.ok)
            assert set(recorded.values()) == {1}, "a record on the full disk was not found again"
        else:
            (disk / "ballast").unlink(missing_ok=True)
        marker = ShardMarker.read(store, 0)
        assert marker and marker.done + marker.failed == marker.items == 8 * ITEMS
    print(f"{tried} sizes: full {dict(failures)}")
    assert set(failures) == {"before the first record", "in a record", "in the marker"}, failures
    assert failures.total() < tried


@pytest.mark.slow
def test_the_pipeline_on_a_full_disk_says_so_and_goes_on_when_there_is_space(disk: Path, catalogue: Path) -> None:
    config = write_config(disk.parent / "c.yaml", catalogue)
    arguments = launch_args(config, disk / "run", "--stages", DATA_STAGES)
    full, kilobytes = 0, 40
    while True:
        resize(disk, kilobytes)
        done = launch(*arguments)
        if done.returncode == 0:
            break
        full += 1
        assert "No space left on device" in output(done), output(done)
        assert "Traceback" not in output(done)
        if (disk / "run" / "run.json").exists():
            assert launch("status", disk / "run").returncode == 0
        kilobytes = int(kilobytes * 1.7)
    print(f"full {full} times, finished with {kilobytes:,} kB")
    assert full >= 2
    undisturbed = launch_args(config, disk.parent / "undisturbed", "--stages", DATA_STAGES)
    assert launch(*undisturbed).returncode == 0
    assert lost(disk.parent / "undisturbed", disk / "run") == []


def test_a_read_only_run_directory_can_be_looked_at_and_is_refused_for_work(disk: Path, catalogue: Path) -> None:
    resize(disk, ENDLESS)
    config = write_config(disk.parent / "c.yaml", catalogue)
    assert launch(*launch_args(config, disk / "run", "--stages", "prepare,validate")).returncode == 0
    mount("-o", "remount,ro", disk)
    done = launch(*launch_args(config, disk / "run", "--stages", "prepare,validate,generate"))
    assert done.returncode == 2
    assert f"Cannot write the run directory {disk / 'run'}: Read-only file system" in output(done)
    assert "Traceback" not in output(done)
    looked = launch("status", disk / "run")
    assert looked.returncode == 0 and "validate" in looked.stdout


def scramble_times(folder: Path, rng: random.Random) -> None:
    """Give every file and folder a time between 1971 and 2100."""
    for path in [folder, *folder.rglob("*")]:
        moment = rng.choice((365 * 86400, time.time() + 75 * 365 * 86400, rng.uniform(0, 4e9)))
        os.utime(path, (moment, moment), follow_symlinks=False)


def test_no_decision_looks_at_a_files_time(tmp_path: Path, catalogue: Path) -> None:
    """A half-done run resumes and a finished one is skipped, whatever the times of its files."""
    rng = random.Random(8)
    config = write_config(tmp_path / "c.yaml", catalogue)
    assert launch(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate")).returncode == 0
    scramble_times(tmp_path / "run", rng)
    done = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate"))
    assert done.returncode == 0 and done.stdout.count("done already, skipped") == 2, output(done)
    scramble_times(tmp_path / "run", rng)
    again = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate"))
    assert again.returncode == 0 and again.stdout.count("done already, skipped") == 3, output(again)


def test_attempts_whose_clocks_were_years_off_are_read_like_any_other(tmp_path: Path) -> None:
    """A record file's name and each record hold the writer's clock; neither affects any decision."""
    work = Squares(tmp_path, ITEMS)
    store = work.store
    freeze_shards(store, 1)
    run_shard(work, 0, 1, lambda: False)
    (path,) = journal_files(store.shard(0))
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    for year, part in (("2099", lines[:20]), ("1971", lines[20:40])):
        name = re.sub(r"^records\.\d{4}", f"records.{year}", path.name)
        path.with_name(name).write_bytes(b"".join(part))
    os.utime(store.done(0), (0, 0))
    assert pending_shards(work, 1) == [0]
    run_shard(work, 0, 1, lambda: False)
    assert results(tmp_path) == expected()
    assert set(Counter(r.key for r in read_records(store, ReadReport()) if r.ok).values()) == {1}


def test_a_success_counts_over_failures_whatever_the_clocks_said(tmp_path: Path) -> None:
    for order in (("2099", "1971"), ("1971", "2099")):
        work = Squares(tmp_path / "-".join(order), 1)
        outcomes: list[Ok | Failed] = [Ok(Square(1)), Failed("x")]
        for year, outcome in zip(order, outcomes, strict=True):
            writer = JournalWriter(work.store.shard(0), f"{year}0101T000000-a", digest(work.settings("")))
            writer.append("item-0", outcome, work.made_from("item-0"))
            writer.close()
        assert settled_outcomes(work, "", made_of(work)) == {"item-0": Ok(Square(1))}


HOSTILE_NAMES = [
    "with space",
    'it\'s "quoted"',
    "$(touch pwned)",
    "`touch pwned`;touch pwned&",
    "-rf",
    "ä\nb",
    "[bold]x[/]",
]


def move(path: Path, rng: random.Random, name: str) -> Path:
    target = path.parent / name
    if rng.random() < 0.5:
        path.rename(target)
    else:
        shutil.copytree(path, target)
        shutil.rmtree(path)
    return target


@pytest.mark.slow
def test_a_run_that_is_moved_or_copied_between_all_stages_comes_to_the_same(tmp_path: Path, catalogue: Path) -> None:
    """The folder's name may contain any characters that a file name can."""
    rng = random.Random(9)
    config = write_config(tmp_path / "c.yaml", catalogue)
    place = tmp_path / "runs"
    place.mkdir()
    run = place / "first"
    names = iter(HOSTILE_NAMES)
    for stage in ("prepare", "validate", "generate", "curate", "train", "evaluate", "report"):
        done = launch(*launch_args(config, run, "--stages", stage))
        assert done.returncode == 0, (run, output(done))
        run = move(run, rng, next(names))
    done = launch(*launch_args(config, run))
    assert done.returncode == 0 and done.stdout.count("done already, skipped") == 7, output(done)
    assert launch("status", run).returncode == 0
    assert launch(*launch_args(config, tmp_path / "undisturbed")).returncode == 0
    assert lost(tmp_path / "undisturbed", run) == []
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


def test_a_half_done_run_that_was_moved_goes_on_where_it_was(tmp_path: Path, catalogue: Path) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue)
    first = tmp_path / HOSTILE_NAMES[1]
    assert launch(*launch_args(config, first, "--stages", "prepare,validate")).returncode == 0
    with contextlib.suppress(FileNotFoundError):
        (RunDir(first).store("validate").done(1)).unlink()
    second = move(first, random.Random(1), HOSTILE_NAMES[2])
    recorded = Counter(r.key for r in read_records(RunDir(second).store("validate"), ReadReport()))
    done = launch(*launch_args(config, second, "--stages", "prepare,validate"))
    assert done.returncode == 0, output(done)
    assert Counter(r.key for r in read_records(RunDir(second).store("validate"), ReadReport())) == recorded
