"""Records that change after their shard finished are detected before anything uses them, redone and reported.

`tests/jobs/shards/test_journal.py` truncates a file at every byte and flips a bit in each; here the shard's marker already exists.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.run.layout import ShardStore
from jobs.shards.journal import journal_files
from jobs.shards.loop import pending_shards, run_shard
from jobs.shards.marker import ShardMarker
from jobs.shards.store import freeze_shards
from tests.chaos.outcome import files, lost
from tests.conftest import launch, launch_args, output, write_config
from tests.jobs.shards.loop_worker import Squares
from tests.jobs.shards.test_loop import ITEMS, expected, results, run_all

SHARDS = 3


def tries(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in (folder / "tried").iterdir()}


def flip(path: Path) -> int:
    data = bytearray(path.read_bytes())
    data[data.index(b'"square"') + 3] ^= 4
    path.write_bytes(data)
    return 1


def cut_a_whole_line(path: Path) -> int:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    return 1


def delete(path: Path) -> int:
    count = len(path.read_bytes().splitlines())
    path.unlink()
    return count


@pytest.mark.parametrize("harm", [flip, cut_a_whole_line, delete])
def test_a_finished_shard_whose_records_changed_is_done_again_and_no_other(
    tmp_path: Path, harm: Callable[[Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(tmp_path, SHARDS)
    work = Squares(tmp_path, ITEMS)
    store = work.store
    before = tries(tmp_path)
    (path,) = journal_files(store.shard(1))
    affected = harm(path)
    assert pending_shards(work, SHARDS) == [1]
    run_shard(work, 1, SHARDS, lambda: False)
    assert str(path) in capsys.readouterr().out
    assert results(tmp_path) == expected()
    again = {key for key, count in tries(tmp_path).items() if count != before[key]}
    assert 1 <= len(again) <= affected
    marker = ShardMarker.read(store, 1)
    assert marker and marker.changed_files == 1
    assert pending_shards(work, SHARDS) == []


@pytest.mark.parametrize("harm", [flip, cut_a_whole_line, delete])
def test_the_same_after_the_number_of_shards_was_changed(tmp_path: Path, harm: Callable[[Path], int]) -> None:
    run_all(tmp_path, 4)
    run_all(tmp_path, SHARDS)
    work = Squares(tmp_path, ITEMS)
    (path,) = journal_files(work.store.shard(3))  # a folder that no longer belongs to a shard
    harm(path)
    assert pending_shards(work, SHARDS) != []
    run_all(tmp_path, SHARDS)
    assert results(tmp_path) == expected()
    assert pending_shards(work, SHARDS) == []


def test_every_byte_of_a_finished_shard_is_watched(tmp_path: Path) -> None:
    work = Squares(tmp_path, 8)
    store = work.store
    freeze_shards(store, 1)
    run_shard(work, 0, 1, lambda: False)
    (path,) = journal_files(store.shard(0))
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        assert pending_shards(work, 1) == [0], position
        path.write_bytes(whole[:position])
        assert pending_shards(work, 1) == [0], position
    path.write_bytes(whole)
    assert pending_shards(work, 1) == []


def test_every_byte_of_a_marker_is_watched(tmp_path: Path) -> None:
    work = Squares(tmp_path, 8)
    store = work.store
    freeze_shards(store, 1)
    run_shard(work, 0, 1, lambda: False)
    whole = store.done(0).read_bytes()
    good = ShardMarker.read(store, 0)
    assert good is not None
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        store.done(0).write_bytes(changed)
        assert ShardMarker.read(store, 0) in (None, good), position  # one blank turned into another is harmless
        store.done(0).write_bytes(whole[:position])
        assert ShardMarker.read(store, 0) in (None, good), position


def test_lines_that_another_attempt_appends_after_the_marker_are_no_damage(tmp_path: Path) -> None:
    run_all(tmp_path, 1)
    (path,) = journal_files(ShardStore(tmp_path / "stage").shard(0))
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines(keepends=True)[0])
    assert pending_shards(Squares(tmp_path, ITEMS), 1) == []


def test_of_a_hundred_finished_stages_damaged_at_random_each_is_mended(tmp_path: Path) -> None:
    """Two faults each, in records, markers and the number of shards: flipped, truncated, emptied, deleted."""
    rng = random.Random(7)
    run_all(tmp_path / "good", 4)
    run_all(tmp_path / "good", SHARDS)
    for trial in range(100):
        folder = tmp_path / str(trial)
        shutil.copytree(tmp_path / "good", folder)
        paths = [*(folder / "stage").glob("shards/*/*"), folder / "stage" / "shards.json"]
        for path in rng.sample(sorted(paths), 2):
            data = bytearray(path.read_bytes())
            kind = rng.choice(("flip", "cut", "empty", "delete"))
            if kind == "flip":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif kind == "cut":
                del data[rng.randrange(len(data)) :]
            path.write_bytes(b"" if kind == "empty" else data)
            if kind == "delete":
                path.unlink()
        work = Squares(folder, ITEMS)
        pending = pending_shards(work, SHARDS)
        if pending:
            freeze_shards(work.store, SHARDS)
        for shard in pending:
            assert run_shard(work, shard, SHARDS, lambda: False).remaining == 0
        assert results(folder) == expected(), trial
        assert pending_shards(work, SHARDS) == [], trial


@pytest.mark.slow
def test_random_damage_anywhere_in_the_sharded_stages_of_a_finished_run_is_mended(
    tmp_path: Path, catalogue: Path
) -> None:
    """Every record file and marker of two stages at once: flipped, truncated, emptied or deleted."""
    rng = random.Random(6)
    config = write_config(tmp_path / "c.yaml", catalogue, validate={"shards": 3}, generate={"shards": 3})
    arguments = launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate,curate")
    assert launch(*arguments).returncode == 0
    shutil.copytree(tmp_path / "run", tmp_path / "good")
    for path in sorted((tmp_path / "run").glob("[23]_*/shards/*/*.json*")):
        data = bytearray(path.read_bytes())
        kind = rng.choice(("flip", "cut", "empty", "delete"))
        if kind == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[rng.randrange(len(data)) :]
        path.write_bytes(b"" if kind == "empty" else data)
        if kind == "delete":
            path.unlink()
    done = launch(*arguments)
    assert done.returncode == 0, output(done)
    assert lost(tmp_path / "good", tmp_path / "run") == []
    assert "done again" in launch("status", tmp_path / "run").stdout
    assert "done again" in output(done)


@pytest.mark.slow
def test_a_flipped_bit_in_an_adapter_is_named_before_the_adapter_is_used(tmp_path: Path, catalogue: Path) -> None:
    """An adapter takes hours, so it is not retrained automatically. Checkpoints: tests/vqa/training/test_checkpoints.py."""
    config = write_config(tmp_path / "c.yaml", catalogue)
    stages = "prepare,validate,generate,curate,train"
    assert launch(*launch_args(config, tmp_path / "run", "--stages", stages)).returncode == 0
    (path,) = (tmp_path / "run").glob("6_train/*/adapter/adapter_model.safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    done = launch(*launch_args(config, tmp_path / "run"))
    assert done.returncode != 0
    assert "adapter_model.safetensors is missing or damaged" in output(done)
    assert not (tmp_path / "run" / "7_evaluate").exists()
    assert files(tmp_path / "run")  # the other files are unchanged
