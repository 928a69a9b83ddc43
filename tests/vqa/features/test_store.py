"""Stored features are those that were computed, whatever happens to the processes and files."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from vqa.features.store import FeatureStore

SHAPE = (16, 64)
WRITER = """
import sys
import time
from pathlib import Path
from tests.vqa.features.test_store import features, key, open_store
store = open_store(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 3000, int(sys.argv[3])):
    name = key(number)
    if store.get_all([name])[0] is None:
        store.add(name, features(number))
        time.sleep(0.002)
"""


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def features(number: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number)).half()


def open_store(folder: Path, max_bytes: float = 1e9) -> FeatureStore:
    return FeatureStore(folder, SHAPE, torch.float16, max_bytes)


def test_four_writers_killed_again_and_again_leave_every_image_right_and_once(tmp_path: Path) -> None:
    chance = random.Random(4)
    size = 64 + SHAPE[0] * SHAPE[1] * 2

    def records() -> int:
        return sum(path.stat().st_size // size for path in tmp_path.iterdir())

    def start(number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number), "4"], cwd=ROOT)

    running = {number: start(number) for number in range(4)}
    for kill in range(1, 6):
        while records() < 300 * kill and any(process.poll() is None for process in running.values()):
            time.sleep(0.01)
        number = chance.choice([number for number, process in running.items() if process.poll() is None])
        running[number].send_signal(signal.SIGKILL)
        running[number].wait()
        running[number] = start(number)
    assert [process.wait() for process in running.values()] == [0] * 4
    store = open_store(tmp_path)
    for number in range(3000):
        found = store.get(key(number))
        assert found is not None
        assert torch.equal(found, features(number))
    assert records() == 3000
    assert len(list(tmp_path.iterdir())) > 4  # the killed ones had written


def test_a_torn_end_and_a_damaged_record_are_not_read_and_are_written_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(3):
        store.add(key(number), features(number))
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # in the second of three records
    file.write_bytes(data[:-1])
    again = open_store(tmp_path)
    found = again.get_all([key(number) for number in range(3)])
    assert found[0] is not None
    assert torch.equal(found[0], features(0))
    assert found[1:] == [None, None]
    for number in (1, 2):
        again.add(key(number), features(number))
    found = open_store(tmp_path).get_all([key(number) for number in range(3)])
    assert [one is not None for one in found] == [True, True, True]


def test_what_one_process_writes_another_reads_while_both_are_open(tmp_path: Path) -> None:
    writer, reader = open_store(tmp_path), open_store(tmp_path)
    writer.add(key(1), features(1))
    (found,) = reader.get_all([key(1)])
    assert found is not None
    assert torch.equal(found, features(1))


def test_a_full_store_says_so_once_and_takes_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path, max_bytes=5000)
    for number in range(6):
        store.add(key(number), features(number))
    assert len(open_store(tmp_path)) == 2
    assert capsys.readouterr().out.count("features.max_gb") == 1
