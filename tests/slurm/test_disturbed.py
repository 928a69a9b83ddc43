"""Preemption, time limits, dead nodes: a disturbed run ends with the records of an undisturbed one."""

import time
from pathlib import Path

import pytest

from slurm.chain import StepPhase
from tests.slurm.conftest import SmallRun
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_a_preempted_task_finishes_its_current_item_and_resumes_later(
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
    assert run.state("validate").retries == 0, "SLURM restarted them, not the gate"


def test_work_longer_than_the_time_limit_gets_as_many_attempts_as_it_takes(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    # A limit of one minute with a signal 30 s before: 5 items of 15 s do not fit.
    run = SmallRun(tmp_path, seconds=15, grace_seconds=30, stages={"validate": {"time": 1}})
    run.step("validate", 2, [])
    run.step("generate", None, ["validate"])
    run.submit()
    run.wait_for(lambda: run.state("validate").phase == StepPhase.COMPLETE, 290)
    assert run.records() | {("generate", None): []} == run.undisturbed() | {("generate", None): []}
    assert len(run.attempts("validate", 0)) >= 2


def test_tasks_of_a_dead_node_are_done_elsewhere_while_the_old_ones_run_on(
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
    assert run.state("validate").phase == StepPhase.COMPLETE
    # The attempts that SLURM believed dead may have done the same items; none is missing, and none is cut off.
    assert {key: sorted(set(items)) for key, items in run.records().items()} == run.undisturbed()
    assert sum(len(run.attempts("validate", shard)) for shard in range(4)) > 4


def test_a_gate_that_slurm_restarts_decides_once(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
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
    assert run.state("generate").phase == StepPhase.COMPLETE
