"""What clusters do to jobs. However a run is disturbed, it ends with the records of an undisturbed one."""

import time
from pathlib import Path

import pytest

from slurm.chain import COMPLETE
from tests.slurm.conftest import SmallRun
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_preemption_by_a_higher_partition_ends_the_item_in_hand_and_goes_on_later(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, seconds=1.5, stages={"validate": {"partition": "preempt"}})
    run.step("validate", 4, [])
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 4 and all(run.records().values()))
    slurm_cluster.run(
        "sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"
    )
    run.wait()
    assert run.records() == run.undisturbed()
    assert sum(len(run.attempts("validate", shard)) for shard in range(4)) == 8
    assert run.state("validate").retries == 0, "SLURM started them again, not the gate"


def test_a_time_limit_shorter_than_the_work_is_met_with_as_many_attempts_as_it_takes(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    # A limit of one minute, told 30 s before: 5 items of 15 s do not fit in.
    run = SmallRun(tmp_path, seconds=15, grace_seconds=30, stages={"validate": {"time": 1}})
    run.step("validate", 2, [])
    run.step("generate", None, ["validate"])
    run.submit()
    run.wait_for(lambda: run.state("validate").state == COMPLETE, 290)
    assert run.records() | {("generate", None): []} == run.undisturbed() | {("generate", None): []}
    assert len(run.attempts("validate", 0)) >= 2


def test_a_node_that_dies_has_its_tasks_done_elsewhere_though_the_old_ones_go_on_running(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, seconds=12)  # longer than SLURM takes to notice
    run.step("validate", 4, [])
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 4 and all(run.records().values()))
    node = run.running("validate")[0].node
    slurm_cluster.kill_node(node)
    try:
        run.wait(290)
    finally:
        slurm_cluster.start_node(node)
        slurm_cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert run.state("validate").state == COMPLETE
    # The attempts that were thought dead may have done the same items again; none is missing, and none is half.
    assert {key: sorted(set(items)) for key, items in run.records().items()} == run.undisturbed()
    assert sum(len(run.attempts("validate", shard)) for shard in range(4)) > 4


def test_a_gate_that_slurm_starts_again_decides_once(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    run.step("validate", 3, [])
    run.step("generate", 1, ["validate"])
    run.fault("validate", 1, "os.kill(os.getpid(), 9)")
    run.submit()
    run.wait_for(lambda: (tmp_path / "gates").is_dir())
    time.sleep(0.5)
    slurm_cluster.run("scontrol", "requeue", next((tmp_path / "gates").iterdir()).name.rpartition("-")[2], check=False)
    run.wait()
    assert run.records() == run.undisturbed()
    assert run.state("generate").state == COMPLETE
