"""What a person sees of a run on SLURM: status in 60 columns, logs with their contents, the words of a full disk."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from jobs.backends import slurm
from jobs.pipeline import run_status, steps_of
from jobs.run.layout import RunDir, Step
from jobs.run.run import open_run
from jobs.verbs.logs import find_logs
from jobs.verbs.status import show_status
from slurm.profile import build_profile
from slurm.queue import live_jobs
from tests.conftest import launch, output
from tests.slurm.strict_site import StrictCluster
from tests.slurm.test_pipeline import STAGES, configuration, wait_until
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]
DEFAULTS = {"cpus": 1, "memory": "900M", "time": 30}


def submit(run: RunDir, catalogue: Path, shards: int = 2, latency: float = 0.0, **profile: object) -> None:
    config = configuration(catalogue, shards, latency)
    open_run(run.path, config, ["test"])
    site = build_profile({"defaults": DEFAULTS, **profile}, STAGES, "test")
    slurm.submit(run, config, steps_of(config, STAGES), site, Console(quiet=True))


def shown(run: RunDir, width: int = 60) -> str:
    said = io.StringIO()
    show_status(run.path, Console(file=said, width=width), as_json=False)
    return said.getvalue()


def is_over(run: RunDir) -> bool:
    return not live_jobs(slurm.chain_folder(run).token())


def test_sixty_columns_say_that_a_job_is_held_and_later_that_it_was_cancelled(
    strict_cluster: StrictCluster, tmp_path: Path, catalogue: Path
) -> None:
    run = RunDir(tmp_path / "run")
    strict_cluster.break_node("n3")
    try:
        submit(run, catalogue, stages={"prepare": {"flags": {"nodelist": "n3"}}})
        wait_until(lambda: "launch failed requeued held" in " ".join(shown(run).split()))
    finally:
        strict_cluster.mend_node("n3")
    said = shown(run)
    assert all(len(line) <= 60 for line in said.splitlines()), said
    words = " ".join(said.replace(":", "").split())
    assert 'prepare held "launch failed requeued held"' in words and "validate queued" in words
    assert launch("cancel", run.path).returncode == 0
    wait_until(lambda: is_over(run))
    assert "stopped: cancelled. The same command again" in " ".join(shown(run).split())


def test_logs_print_what_tasks_and_slurm_said(strict_cluster: StrictCluster, tmp_path: Path, catalogue: Path) -> None:
    run = RunDir(tmp_path / "run")
    submit(run, catalogue, shards=4, latency=0.5, max_queued=4)
    following = launch("logs", run.path, "--stage", "prepare,validate", "--follow")
    assert is_over(run), "it ended before the run"
    assert "validate 00000-00001| validate shard 1: " in following.stdout, output(following)
    tailed = launch("logs", run.path, "--stage", "validate", "--tail", "1").stdout
    assert "validate shard 3: " in tailed and "validate shard 2: " not in tailed
    (run.path / "slurm-77.out").write_text("error: no such shard\n")
    assert "by hand slurm-77" in launch("logs", run.path).stdout
    (run.path / "slurm-77.out").unlink()
    config = configuration(catalogue, 4, 0.5)
    steps = [Step("validate")]
    assert not [log for log in find_logs(run, config, steps) if "SLURM" in log.task], "SLURM had no errors"
    state = slurm.chain_folder(run).step("validate")
    assert state is not None
    said = slurm.chain_folder(run).outputs(f"{state.jobs[0].id}_1")[0]
    said.write_text(said.read_text() + "slurmstepd-n1: error: Exceeded job memory limit\nsrun: error: Killed\n")
    (log,) = [log for log in find_logs(run, config, steps) if "SLURM" in log.task]
    assert (log.task, log.error, log.path) == ("00002-00003 in SLURM's words", "Exceeded job memory limit", said)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system that a test can fill up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_is_full_is_named_by_status(slurm_cluster: SlurmCluster, disk: Path, catalogue: Path) -> None:
    run = RunDir(disk / "run")
    submit(run, catalogue, latency=0.5)
    wait_until(lambda: {one.step: one for one in run_status(run, configuration(catalogue, 2, 0.5))}["generate"].done)
    subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'ballast'}", "bs=4k"], capture_output=True, check=False)
    wait_until(lambda: is_over(run))
    said = launch("status", run.path)
    assert said.returncode == 0, output(said)
    assert f"No space left on device: 0 KB are free at {run.path}" in said.stdout, output(said)
    assert "generate" in said.stdout and ("vanished" in said.stdout or "stopped" in said.stdout)
