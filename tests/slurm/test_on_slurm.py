"""Chains of arrays on a real SLURM: submission, gates, retries, cancellation, different kinds of sites."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.chain import StepPhase
from slurm.profile import SlurmError
from slurm.queue import cancel, sacct_states
from slurm.submit import Cluster
from tests.slurm.conftest import SmallRun
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def test_a_chain_completes_in_an_awkwardly_named_folder_though_a_task_is_killed(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path / 'it\'s a "run" $(touch pwned); x')
    run.step("prepare", None, [])
    run.step("validate", 20, ["prepare"])
    run.step("generate", 3, ["validate"])
    run.step("train:blip", None, ["generate"])
    run.fault("validate", 3, "os.kill(os.getpid(), 9)")
    states = run.submit()
    assert [len(state.jobs) for state in states] == [1, 1, 1, 1]
    run.wait()
    assert run.records() == run.undisturbed()
    assert {step.name: run.state(step.name).phase for step in run.steps} == dict.fromkeys(
        ["prepare", "validate", "generate", "train:blip"], StepPhase.COMPLETE
    )
    assert run.state("validate").retries == 1
    assert len(run.attempts("validate", 3)) == 2
    assert len(run.attempts("validate", 4)) == 1
    assert not list(Path().glob("pwned"))


def test_a_failing_task_stops_the_chain_and_the_same_command_resumes_there(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path)
    run.step("validate", 3, [])
    run.step("generate", 2, ["validate"])
    run.step("train", None, ["generate"])
    run.fault("validate", 1, "print('error: disk full'); sys.exit(1)")
    run.submit()
    run.wait()
    state = run.state("validate")
    assert (state.phase, state.reasons, state.retries) == (StepPhase.STOPPED, {"failed": [1]}, 0)
    assert "the same command again" in state.message
    assert str(tmp_path / "logs") in state.message
    assert not run.attempts("generate", 0), "started although its input is not complete"
    states = run.submit()
    assert states[0].work.shards == [1]
    run.wait()
    assert run.records() == run.undisturbed()


def test_a_task_that_is_always_killed_is_retried_only_as_often_as_the_profile_says(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, retries=1)
    run.step("validate", 2, [])
    run.step("generate", 2, ["validate"])
    # It removes its record of the first item, too, so that no attempt gets further than the one before.
    run.fault("validate", 0, "#always\nfile.truncate(0); os.kill(os.getpid(), 9)")
    run.submit()
    run.wait()
    state = run.state("validate")
    assert (state.phase, state.retries, state.reasons) == (StepPhase.STOPPED, 1, {"killed": [0]})
    assert len(run.attempts("validate", 0)) == 2
    assert not run.attempts("generate", 0)


# Moves the task and its parent into a cgroup with little memory, as SLURM's cgroup plugin does, and allocates more.
EXHAUST = """#always
import subprocess
limited = Path({group!r})
around = os.getppid()
for process in (around, os.getpid()):
    (limited / "cgroup.procs").write_text(str(process))
bytearray(1_000_000_000)
"""


def memory_cgroup(name: str) -> Path:
    """A cgroup of this machine with a limit of 100 MB; skips the test where none can be made."""
    for folder, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(folder) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(100_000_000))
        except OSError:
            group.rmdir()
            continue
        return group
    pytest.skip("no memory cgroup can be made here")


def test_an_out_of_memory_kill_is_recognized_without_sacct_and_not_retried(
    plain_cluster: SlurmCluster, tmp_path: Path
) -> None:
    group = memory_cgroup(f"product-vqa-{os.getpid()}")
    try:
        run = SmallRun(tmp_path, retries=2)
        run.step("validate", 2, [])
        run.fault("validate", 0, EXHAUST.format(group=str(group)))
        run.submit()
        run.wait()
    finally:
        group.rmdir()
    state = run.state("validate")
    assert (state.phase, state.retries, state.reasons) == (StepPhase.STOPPED, 0, {"out of memory": [0]})
    assert len(run.attempts("validate", 0)) == 1


def test_scontrol_requeue_of_running_tasks_loses_and_repeats_no_record(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, seconds=0.8)
    run.step("validate", 4, [])
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 4 and all(run.records().values()))
    for job in run.running("validate")[:2]:
        slurm_cluster.run("scontrol", "requeue", job.id)
    run.wait()
    assert run.records() == run.undisturbed()
    assert sum(len(run.attempts("validate", shard)) for shard in range(4)) == 6


def test_a_task_that_gets_usr2_saves_is_requeued_and_resumes(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, seconds=0.8)
    run.step("validate", 2, [])
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 2 and all(run.records().values()))
    first = run.running("validate")[0]
    slurm_cluster.run("scancel", "--signal=USR2", f"{first.id}.0")
    run.wait()
    assert run.records() == run.undisturbed()
    assert sorted(len(run.attempts("validate", shard)) for shard in range(2)) == [1, 2]
    assert run.state("validate").retries == 0, "SLURM restarted it, not the gate"


def test_a_queued_run_is_not_submitted_twice_and_cancel_takes_only_its_own_jobs(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    other = SmallRun(tmp_path / "other", seconds=60)
    other.step("validate", 2, [])
    other.submit()
    run = SmallRun(tmp_path / "run", seconds=60)
    run.step("validate", 3, [])
    run.step("generate", 3, ["validate"])
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 3)
    with pytest.raises(SlurmError, match=r"already in SLURM's queue: validate \(4\), generate \(4\)"):
        run.submit()
    assert len(run.jobs()) == 8
    assert len(cancel(run.chain.token())) == 8
    run.wait()
    assert len(other.jobs()) == 3
    cancel(other.chain.token())
    other.wait()


def test_on_a_full_cluster_the_chain_waits_and_then_runs(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    blocker = slurm_cluster.run(
        "sbatch", "--parsable", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 300"
    ).strip()
    run = SmallRun(tmp_path)
    run.wait_for(lambda: "allocated" in slurm_cluster.run("sinfo", "--noheader", "--format=%T"))
    run.step("validate", 2, [])
    run.step("generate", 1, ["validate"])
    run.submit()
    run.wait_for(lambda: {job.reason for job in run.jobs() if job.step == "validate" and not job.is_gate} <= {"Resources", "Priority"})  # fmt: skip
    assert {job.state for job in run.jobs()} == {"PENDING"}
    slurm_cluster.run("scancel", blocker)
    run.wait()
    assert run.records() == run.undisturbed()


def test_a_site_with_small_arrays_and_without_sacct_runs_and_retries_the_same(
    plain_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path)
    run.step("validate", 19, [])
    run.step("generate", 1, ["validate"])
    run.fault("validate", 17, "os.kill(os.getpid(), 9)")
    states = run.submit()
    assert [len(job.shards) for job in states[0].jobs] == [8, 8, 3]
    assert sacct_states(["1"]) is None
    run.wait()
    assert run.records() == run.undisturbed()
    assert run.state("validate").retries == 1


def test_where_nodes_may_not_submit_the_gate_says_to_run_the_command_again(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    (refusing := tmp_path / "bin" / "sbatch").parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'sbatch: error: not from here' >&2; exit 1\n")
    refusing.chmod(0o755)
    run = SmallRun(tmp_path / "run", stages={"gate": {"setup": [f"PATH={refusing.parent}:$PATH"]}})
    run.step("validate", 2, [])
    run.step("generate", 1, ["validate"])
    run.fault("validate", 1, "os.kill(os.getpid(), 9)")
    run.submit()
    run.wait()
    state = run.state("validate")
    assert state.phase == StepPhase.STOPPED
    assert "not from here" in state.message
    assert "the same command again" in state.message
    run.submit()
    run.wait()
    assert run.records() == run.undisturbed()


def test_a_refused_submission_says_why_and_leaves_nothing_in_the_queue(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, stages={"generate": {"partition": "nowhere"}})
    run.step("validate", 2, [])
    run.step("generate", 2, ["validate"])
    with pytest.raises(SlurmError, match="invalid partition"):
        run.submit()
    run.wait(20)


def test_training_gets_one_task_per_gpu_and_the_variables_of_torch_distributed(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, stages={"train": {"gpus": 2, "nodes": 2, "memory": "200M", "cpus": 1}})
    run.step("train", None, [], distributed=True)
    run.submit()
    run.wait()
    rows = sorted(file.read_text().split() for file in run.attempts("train", None))
    assert [row[:3] for row in rows] == [["0", "0", "4"], ["1", "1", "4"], ["2", "0", "4"], ["3", "1", "4"]]
    assert len({(row[3], row[4]) for row in rows}) == 1
    assert socket.gethostbyname(rows[0][3])
    assert len({row[6] for row in rows}) == 2
    assert {row[5] for row in rows} == {"0,1"}


def test_seven_stages_of_1000_shards_are_seven_arrays_and_seven_gates(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path, stages={"validate": {"flags": {"hold": True}}})
    names = ["validate", *(f"generate:{number}" for number in range(6))]
    for before, name in zip([None, *names], names, strict=False):
        run.step(name, 1000, [before] if before else [])
    states = run.submit()
    assert [len(state.jobs) for state in states] == [1] * 7
    assert len(run.jobs()) == 7007
    cancel(run.chain.token())
    run.wait(30)


def test_the_script_of_a_dry_run_is_accepted_by_sbatch(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(
        tmp_path,
        stages={
            "generate": {"partition": "high", "nice": 5, "parallel": 2, "flags": {"exclude": "n4"}, "setup": ["date"]}
        },
        setup=["module load x"],
    )
    run.step("generate", 5, [])
    text = Cluster(run.profile, run.chain.path, "abc").script(run.steps[0])
    for line in (
        "--array=0-4%2",
        "--partition=high",
        "--nice=5",
        "--exclude=n4",
        "--job-name=generate.abc",
    ):
        assert f"#SBATCH {line}\n" in text
    assert text.index("module load x") < text.index("\ndate\n") < text.index("srun ")
    assert not run.jobs()
    script = tmp_path / "script.sh"
    script.write_text(text)
    done = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sys.executable in text
