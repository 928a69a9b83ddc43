"""Two nodes that see each other's files late work on the same shards at once."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_prep.files import read_json
from jobs.pipeline import make_stage, task_command
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.run.run import load_run
from jobs.shards.journal import ReadReport, journal_files
from jobs.shards.loop import pending_shards
from jobs.shards.store import read_records
from tests.chaos.lagging import LaggingViews
from tests.chaos.outcome import lost, repeated
from tests.conftest import ROOT, environment, launch, launch_args, output, write_config
from tests.jobs.shards.loop_worker import Squares
from tests.jobs.shards.test_loop import ITEMS, expected, results, run_all


def keeps_to_itself(path: Path) -> bool:
    return path.parts[0] == "tried" or path.name.startswith(".nfs-")


@pytest.mark.parametrize("lag", [0.05, 0.5, 5.0])
def test_two_attempts_at_one_shard_that_see_each_other_late_end_with_every_item_once(
    tmp_path: Path, lag: float
) -> None:
    with LaggingViews(tmp_path, lag, keeps_to_itself, seed=1) as nodes:
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.jobs.shards.loop_worker", str(view), str(ITEMS), "0", "1", "0.01"],
                cwd=ROOT,
            )
            for view in nodes.views
        ]
        assert [process.wait(timeout=60) for process in both] == [0, 0]
    for view in nodes.views:
        store = ShardStore(view / "stage")
        assert len(journal_files(store.shard(0))) == 2
        assert results(view) == expected()
        assert pending_shards(Squares(view, ITEMS), 1) == []
        recorded = Counter(r.key for r in read_records(store, ReadReport()) if r.ok)
        assert set(recorded.values()) <= {1, 2}


def test_an_attempt_on_one_node_takes_up_what_another_node_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.jobs.shards.loop_worker"]
    with LaggingViews(tmp_path, 0.1, keeps_to_itself) as nodes:
        first = subprocess.Popen([*command, str(nodes.views[0]), "500", "0", "1", "0.01"], cwd=ROOT)
        while not any(read_records(ShardStore(nodes.views[1] / "stage"), ReadReport())):
            pass
        first.kill()
        first.wait()
    records = list(read_records(ShardStore(nodes.views[1] / "stage"), ReadReport()))
    left = {r.key for r in records if r.ok or not r.retry}
    assert left
    subprocess.run([*command, str(nodes.views[1]), "500", "0", "1", "0"], cwd=ROOT, check=True)
    again = {p.name for p in (nodes.views[1] / "tried").iterdir()}
    assert not left & again
    assert len(left | again) == 500


def test_records_that_a_marker_names_are_found_where_the_listing_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node caches directory listings for up to a minute, which a copy of the folder cannot imitate."""
    run_all(tmp_path, 2)
    monkeypatch.setattr("jobs.shards.loop.journal_files", lambda folder: [])
    assert results(tmp_path) == expected()


def test_a_marker_that_another_node_replaces_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "done.json").write_text('{"items": 3}')
    read, failures = Path.read_bytes, iter((True, True, False))

    def stale(path: Path) -> bytes:
        if next(failures):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert read_json(tmp_path / "done.json") == {"items": 3}


@pytest.mark.slow
def test_the_sharded_stages_on_two_nodes_at_once_come_to_the_same_records(tmp_path: Path, catalogue: Path) -> None:
    """Each task runs on one or both nodes, without waiting for the other's files; what is left is run again."""
    rng = random.Random(12)
    config = write_config(tmp_path / "c.yaml", catalogue, validate={"shards": 3}, generate={"shards": 3})
    stages = "prepare,validate,generate,curate"
    assert launch(*launch_args(config, tmp_path / "undisturbed", "--stages", stages)).returncode == 0
    attempts = 0
    with LaggingViews(tmp_path / "nodes", 0.7, keeps_to_itself, seed=2) as nodes:
        runs = [view / "run" for view in nodes.views]
        assert launch(*launch_args(config, runs[0], "--stages", "prepare")).returncode == 0
        nodes.exchange()
        for stage in ("validate", "generate"):
            for _ in range(8):
                left = {run: pending(run, stage) for run in runs}
                if not any(left.values()):
                    break
                tasks = []
                for shard in sorted({shard for shards in left.values() for shard in shards}):
                    for run in rng.sample(runs, rng.choice((1, 2))):
                        command = task_command(RunDir(run), Step(stage), shard)
                        tasks.append(subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL))
                attempts += len(tasks)
                assert [task.wait(timeout=60) for task in tasks] == [0] * len(tasks)
            else:
                pytest.fail(f"{stage} never came to an end")
    print(f"{attempts} attempts at 6 shards; {nodes.carried} changes carried; {repeated(runs[0])} records twice")
    assert attempts > 6, "no shard was worked on twice"
    for run in runs:
        done = launch(*launch_args(config, run, "--stages", stages))
        assert done.returncode == 0, output(done)
        assert lost(tmp_path / "undisturbed", run) == []


def pending(run: Path, stage: str) -> list[int]:
    """The pending shards of a stage, as one node sees them."""
    return [task for task in make_stage(Step(stage), *load_run(run)).pending() if task is not None]
