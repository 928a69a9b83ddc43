"""What was written is on the disk before anything builds on it: the calls of fsync are counted, since no test cuts the power."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.files import write_json
from data_prep.outcomes import Failed, Ok
from jobs.shards.journal import JournalWriter

Synced = Callable[[], list[str]]


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Synced:
    """The files and folders, as they were named then, that were synchronized since the last call."""
    found: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), tmp_path))
        real(descriptor)

    def since() -> list[str]:
        names = list(found)
        found.clear()
        return names

    monkeypatch.setattr(os, "fsync", fsync)
    return since


def test_a_paid_reply_is_synchronized_before_append_returns(tmp_path: Path, synced: Synced) -> None:
    writer = JournalWriter(tmp_path, "a", "f")
    for number in range(3):
        writer.append(f"k{number}", Ok({}), durable=True)
        assert writer.path.name in synced()
    writer.append("free", Ok({}))
    assert synced() == []
    writer.close()
    assert synced() == [writer.path.name]


def test_a_new_record_file_and_each_new_folder_are_synchronized(tmp_path: Path, synced: Synced) -> None:
    writer = JournalWriter(tmp_path / "3_generate/shards/00007", "a", "f")
    writer.append("k", Failed("x"))
    assert synced() == [".", "3_generate", "3_generate/shards", "3_generate/shards/00007"]
    writer.append("l", Failed("x"))
    assert synced() == []
    writer.close()


def test_an_atomic_file_is_synchronized_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, synced: Synced, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        order.extend([*synced(), "renamed"])
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_json(tmp_path / "new/done.json", {})
    order += synced()
    assert [name.partition("/.done.json.")[0] for name in order] == [".", "new", "renamed", "new"]
    assert "/.done.json." in order[1]
