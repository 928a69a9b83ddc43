"""Records survive torn writes and flipped bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.outcomes import Failed, Ok
from jobs.shards.journal import (
    JournalWriter,
    ReadReport,
    corrupted_files,
    extents,
    journal_files,
    read_journal,
    seal,
    unseal,
)


def write(folder: Path, count: int = 5) -> Path:
    writer = JournalWriter(folder, "a1", "f00d")
    for number in range(count):
        writer.append(f"k{number}", Ok({"text": 'ä\n"}' * number}))
    writer.close()
    return writer.path


def keys(path: Path, report: ReadReport | None = None) -> list[str]:
    return [record.key for record in read_journal(path, report or ReadReport())]


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(-(2**53), 2**53), st.none()), min_size=1))
def test_any_record_is_read_back_as_it_was_sealed(record: dict[str, object]) -> None:
    record.pop("crc", None)
    record["key"] = "k"
    line = seal(record)
    assert line.count(b"\n") == 1
    back = unseal(line)
    assert back == record


def test_a_file_cut_at_any_byte_loses_only_the_record_that_was_cut(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        report = ReadReport()
        complete = sum(end <= cut for end in ends)
        assert keys(path, report) == [f"k{n}" for n in range(complete)]
        assert report.torn == (0 if cut in (0, *ends) else 1)
        assert not report.broken


def test_a_flipped_bit_anywhere_is_noticed_and_costs_one_record_at_most(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        report = ReadReport()
        found = keys(path, report)
        assert set(found) <= {"k0", "k1", "k2"}
        # a flipped line end joins two records; any other flip costs the one that it is in
        assert len(found) >= 1
        assert len(found) < 3
        assert report.broken or report.torn


def test_a_record_states_its_settings_and_content(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "a1", "f00d")
    writer.append("k", Failed("x"), "cafe")
    writer.close()
    (record,) = read_journal(writer.path, ReadReport())
    assert (record.settings, record.made) == ("f00d", "cafe")


def test_a_closed_file_is_let_go_of_and_colleagues_can_read_it(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    umask = os.umask(0o022)
    try:
        writer = JournalWriter(tmp_path, "a1", "f00d")
        writer.append("k", Ok({}))
    finally:
        os.umask(umask)
    writer.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert writer.path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("data", [b"", b"x", b"x" * (1 << 20), b"x" * ((1 << 20) + 1)], ids=len)
def test_a_file_counts_as_changed_only_where_its_known_bytes_did(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "records.a.f.jsonl"
    path.write_bytes(data)
    known = extents([path])
    path.write_bytes(data + b"another attempt")
    assert corrupted_files(tmp_path, known) == []
    if data:
        path.write_bytes(data[:-1] + b"y")
        assert corrupted_files(tmp_path, known) == [path]
        path.write_bytes(data[:-1])
        assert corrupted_files(tmp_path, known) == [path]
        path.unlink()
        assert corrupted_files(tmp_path, known) == [path]


def test_a_damaged_line_is_reported_by_its_number(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "a1", "f00d")
    for key in ("k0", "k1"):
        writer.append(key, Ok({}))
    writer.close()
    first, second = writer.path.read_bytes().splitlines(keepends=True)
    writer.path.write_bytes(first.replace(b"k0", b"x0") + second)
    report = ReadReport()
    assert keys(writer.path, report) == ["k1"] and report.broken == [f"{writer.path}:1"]


def test_what_was_emitted_is_on_disk_when_the_process_is_killed_the_next_moment(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path; from jobs.shards.journal import JournalWriter; from data_prep.outcomes import Ok\n"
        f"w = JournalWriter(Path({str(tmp_path)!r}), 'a', 'f')\n"
        "for n in range(100): w.append(f'k{n}', Ok({}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (path,) = journal_files(tmp_path)
    assert keys(path) == [f"k{n}" for n in range(100)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_no_record_follows_the_torn_one(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "a", "f")
    writer.append("k0", Ok({}))
    full = os.open("/dev/full", os.O_WRONLY)
    assert writer._descriptor is not None
    os.dup2(full, writer._descriptor)
    for outcome in (Ok({}), Failed("x")):
        with pytest.raises(OSError, match="No space left"):
            writer.append("k1", outcome)
    writer.close()
    assert keys(writer.path) == ["k0"]
