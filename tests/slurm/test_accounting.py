"""What a run used, by SLURM's own account where users have one, and by its tasks' where they have none."""

import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.files import read_json
from jobs.backends import slurm
from jobs.pipeline import run_status, steps_of
from jobs.run.layout import Step
from jobs.run.run import open_run
from jobs.run.usage import JobUsage, StepAccount, proposal, used_by
from slurm.profile import build_profile
from slurm.queue import live_jobs
from slurm.watch.accounting import duration, gpus, size, usage
from tests.conftest import launch
from tests.slurm.conftest import SmallRun
from tests.slurm.strict_site import StrictCluster
from tests.slurm.test_pipeline import STAGES, configuration, wait_until
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

GIB = 2**30


def test_gpu_time_of_requeued_attempts_and_memory_are_slurms_own_figures(
    strict_cluster: StrictCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, seconds=1, stages={"validate": {"gpus": 1, "memory": "300M"}})
    run.fault("validate", 1, "kept = b'x' * 60_000_000; time.sleep(4)")
    run.step("validate", 2, [])
    began = time.time()
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 2 and all(run.records().values()))
    strict_cluster.run("scontrol", "requeue", run.running("validate")[0].id)
    run.wait()
    name = f"validate.{run.chain.token()}"

    def jobs() -> list[JobUsage]:
        return (usage({name: "validate"}, began - 60) or {}).get("validate", [])  # type: ignore[return-value]

    run.wait_for(lambda: sum(job.attempts for job in jobs()) == 3, 30)
    assert len(jobs()) == 2
    for job in jobs():
        assert job.gpu_seconds == job.seconds >= job.longest_seconds > 0
    assert max(job.max_rss_bytes for job in jobs()) > 60_000_000


@pytest.mark.parametrize("accounted", [True, False])
def test_status_and_ledger_count_what_jobs_used_with_and_without_sacct(
    accounted: bool, request: pytest.FixtureRequest, tmp_path: Path, catalogue: Path
) -> None:
    _: SlurmCluster = request.getfixturevalue("strict_cluster" if accounted else "plain_cluster")
    config = configuration(catalogue, shards=2, latency=0.0)
    run, _notes = open_run(tmp_path / "run", config, ["test"])
    tree = {"defaults": {"cpus": 1, "memory": "900M", "time": 30}, "stages": {"validate": {"gpus": 1}}}
    slurm.submit(run, config, steps_of(config, STAGES[:2]), build_profile(tree, STAGES, "x"), Console(quiet=True))
    wait_until(lambda: not live_jobs(slurm.chain_folder(run).token()))
    validate = Step("validate")
    kept = read_json(run.slurm_account(validate))
    assert kept is not None and (kept["memory"], kept["minutes"]) == ("900M", 30)
    told = used_by(run, validate, StepAccount())
    assert told.attempts == 2 and told.gpu_hours > 0 < told.cpu_hours
    found = {status.step: status.used for status in run_status(run, config)}["validate"]
    assert found.gpu_hours >= told.gpu_hours and found.cpu_hours >= told.cpu_hours
    assert "time: 0:10:00 (used 0 of 30 min)" in found.proposal
    # A task that was killed before it could write leaves its account with SLURM alone.
    shutil.rmtree(run.attempts(validate))
    if accounted:
        wait_until(lambda: sum(job.attempts for job in slurm.accounts(run)["validate"].jobs) == 2, 30)
        assert used_by(run, validate, slurm.accounts(run)["validate"]).gpu_hours > 0
        said = launch("status", run.path, COLUMNS="60").stdout
        assert "validate: next time, in the cluster profile: time: 0:10:00" in said
    else:
        assert slurm.accounts(run) == {} and used_by(run, validate).gpu_hours == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:01.250", 1.25), ("01:02:03", 3723), ("1-02:03:04", 93784), ("", 0), ("10:00", 600)]
)
def test_times_are_read_as_sacct_writes_them(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def test_gpus_and_sizes_are_read_as_sacct_writes_them() -> None:
    assert [gpus(text) for text in ("cpu=8,gres/gpu:a100=2,gres/gpu=2", "gres/gpu:a100=4,mem=1G", "cpu=1", "")] == [2, 4, 0, 0]  # fmt: skip
    assert [size(text) for text in ("476114K", "1.50G", "12", "")] == [476114 * 1024, 3 * 2**29, 12, 0]


@pytest.mark.parametrize(
    ("used", "seconds", "asked", "proposed"),
    [
        (2 * GIB, 6000, StepAccount("16G", 720), "memory: 3G (used 2.0 of 16G), time: 2:30:00 (used 100 of 720 min)"),
        (10 * GIB, 6000, StepAccount("16G", 240), ""),
        (15 * GIB, 6000, StepAccount("16G", 90), "memory: 23G (used 15.0 of 16G)"),
        (GIB // 9, 60, StepAccount("900M", 15), ""),
        (2 * GIB, 6000, StepAccount(), ""),
    ],
)
def test_next_time_asks_for_half_as_much_again_as_was_used_where_that_differs(
    used: int, seconds: float, asked: StepAccount, proposed: str
) -> None:
    assert proposal(used, seconds, asked) == proposed
