"""One verdict a step, from the chain, squeue and the run's files: what waits says why, what is lost is missed."""

import subprocess
from pathlib import Path

import pytest

from slurm.queue import cancel
from slurm.watch.reconcile import StepVerdict, Verdict, reconcile
from tests.slurm.conftest import SmallRun
from tests.slurm.strict_site import StrictCluster
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def verdicts(run: SmallRun) -> dict[str, StepVerdict]:
    return reconcile(run.chain).verdicts


def kinds(run: SmallRun) -> list[Verdict]:
    return [found.verdict for found in verdicts(run).values()]


def two_steps(folder: Path, seconds: float = 0.0, **profile: object) -> SmallRun:
    run = SmallRun(folder, seconds, **profile)
    run.step("validate", 2, [])
    run.step("generate", 2, ["validate"])
    return run


def test_tasks_on_a_node_whose_prolog_fails_are_held_and_say_whom_to_ask(
    strict_cluster: StrictCluster, tmp_path: Path
) -> None:
    run = two_steps(tmp_path, stages={"validate": {"flags": {"nodelist": "n2"}}})
    strict_cluster.break_node("n2")
    try:
        run.submit()
        run.wait_for(lambda: kinds(run)[0] is Verdict.HELD)
        found = verdicts(run)["validate"]
    finally:
        strict_cluster.mend_node("n2")
    assert "launch failed requeued held" in found.why
    assert "administrators" in found.advice and "scontrol release" in found.advice
    assert kinds(run)[1] is Verdict.QUEUED
    for job in run.jobs():
        strict_cluster.run("scontrol", "release", job.id)
    run.wait()
    assert kinds(run) == [Verdict.COMPLETE] * 2


def test_a_run_goes_from_waiting_to_running_to_complete(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    full = ["sbatch", "--parsable", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 300"]
    blocker = slurm_cluster.run(*full).strip()
    run = two_steps(tmp_path, seconds=0.5)
    run.wait_for(lambda: "allocated" in slurm_cluster.run("sinfo", "--noheader", "--format=%T"))
    run.submit()
    run.wait_for(lambda: "(None)" not in verdicts(run)["validate"].why)
    waiting = verdicts(run)["validate"]
    assert waiting.verdict is Verdict.WAITING
    assert "no node with what it asks for is free (Resources)" in waiting.why or "(Priority)" in waiting.why
    slurm_cluster.run("scancel", blocker)
    run.wait_for(lambda: kinds(run) == [Verdict.RUNNING, Verdict.QUEUED])
    run.wait()
    assert kinds(run) == [Verdict.COMPLETE] * 2


def test_jobs_that_somebody_cancelled_are_missed(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = two_steps(tmp_path, seconds=60)
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 2)
    state = run.state("validate")
    cancel(run.chain.token())
    run.wait()
    found = verdicts(run)
    assert kinds(run) == [Verdict.VANISHED, Verdict.NOT_STARTED]
    assert f"neither its tasks (job {state.jobs[0].id}) nor its gate (job {state.gate})" in found["validate"].why
    # slurmdbd hears of it a moment later.
    run.wait_for(lambda: "2 CANCELLED; of its gate: CANCELLED" in verdicts(run)["validate"].why)
    assert "same command again" in found["validate"].advice


def test_without_its_gate_a_step_says_that_the_chain_ends_there(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = two_steps(tmp_path, seconds=60)
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 2)
    slurm_cluster.run("scancel", run.state("validate").gate)
    run.wait_for(lambda: "is gone, so the chain ends here" in verdicts(run)["validate"].advice)
    cancel(run.chain.token())


def test_a_failing_task_is_told_while_others_run_and_then_the_step_stops(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = two_steps(tmp_path, seconds=1)
    run.fault("validate", 0, "print('error: no such image'); sys.exit(1)")
    run.submit()
    run.wait_for(lambda: verdicts(run)["validate"].why == "1 tasks failed so far")
    run.wait()
    found = verdicts(run)
    assert kinds(run) == [Verdict.STOPPED, Verdict.NOT_STARTED]
    assert "failed 1 tasks (0)" in found["validate"].why


def test_a_queue_that_does_not_answer_is_silence_not_loss(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = two_steps(tmp_path, seconds=60)
    run.submit()
    run.wait_for(lambda: run.attempts("validate", 0))
    with monkeypatch.context() as broken:
        broken.setenv("PATH", str(tmp_path))
        assert kinds(run) == [Verdict.SILENT] * 2
        found = verdicts(run)["validate"]
        assert "squeue does not answer" in found.why and "newest log was written 0 min ago" in found.advice
    cancel(run.chain.token())


def test_another_users_jobs_may_be_hidden_and_are_not_called_lost(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = two_steps(tmp_path)
    run.submit()
    run.wait()
    (run.folder / "slurm" / "steps" / "generate.json").unlink()
    assert kinds(run) == [Verdict.COMPLETE, Verdict.VANISHED]
    subprocess.run(["chown", "nobody", str(run.folder / "slurm" / "chain.json")], check=True)
    assert kinds(run) == [Verdict.COMPLETE, Verdict.SILENT]
    assert "jobs of nobody" in verdicts(run)["generate"].why
