"""A site that limits how many jobs a user may queue, how long they may be and how much memory they use, and that sends mails."""

import re
from pathlib import Path

import pytest

from slurm.chain import StepPhase, segments
from slurm.profile import SlurmError
from slurm.queue import cancel
from slurm.submit import StepWork
from tests.slurm.conftest import SmallRun
from tests.slurm.strict_site import MAX_SUBMIT, StrictCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def chain(folder: Path, **profile: object) -> SmallRun:
    """A run of four steps, of which two follow the same one, with more tasks than the site lets a user queue."""
    run = SmallRun(folder, **profile)
    run.step("validate", 20, [])
    run.step("train:a", None, ["validate"])
    run.step("train:b", None, ["validate"])
    run.step("generate", 12, ["train:a", "train:b"])
    return run


def test_a_refused_run_leaves_nothing_queued_and_says_what_to_write(
    strict_cluster: StrictCluster, tmp_path: Path
) -> None:
    run = chain(tmp_path)
    with pytest.raises(SlurmError, match=rf"38 jobs.*Nothing was queued.*max_queued: {MAX_SUBMIT} \(limit of the QOS"):
        run.submit()
    assert not run.jobs()
    assert run.chain.chain() is None


@pytest.mark.timeout(400)
def test_with_max_queued_a_larger_run_completes_though_a_task_is_killed(
    strict_cluster: StrictCluster, tmp_path: Path
) -> None:
    run = chain(tmp_path, max_queued=MAX_SUBMIT)
    run.fault("validate", 4, "os.kill(os.getpid(), 9)")
    run.fault("train:a", None, "os.kill(os.getpid(), 9)")
    assert [state.work.name for state in run.submit()] == ["validate"]
    run.wait_for(lambda: not run.jobs(), 300)
    assert {step.name: run.state(step.name).phase for step in run.steps} == dict.fromkeys(
        ["validate", "train:a", "train:b", "generate"], StepPhase.COMPLETE
    ), run.logs()
    assert run.records() == run.undisturbed()
    assert (run.state("validate").retries, run.state("train:a").retries) == (1, 1)


def test_where_other_jobs_fill_the_limit_a_gate_waits_for_room(strict_cluster: StrictCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, seconds=0.5, max_queued=5)
    run.step("validate", 3, [])
    run.step("generate", 3, ["validate"])
    run.submit()
    run.wait_for(lambda: len(run.running("validate")) == 3)
    fill = ["sbatch", "--parsable", "--mem=10M", "--output=/dev/null", "--array=0-5", "--wrap", "sleep 300"]
    other = strict_cluster.run(*fill).strip()
    run.wait_for(lambda: "Trying again" in run.logs())
    strict_cluster.run("scancel", other)
    run.wait()
    assert run.records() == run.undisturbed()


def test_segments_hold_what_may_be_queued_beside_the_gate_that_submits() -> None:
    sizes = {"a": 64, "b": 1, "c": 1, "d": 1, "e": 2, "f": 1}
    works = [StepWork(name, name, [], [], "", list(range(size))) for name, size in sizes.items()]
    cut = segments(works, 10)
    assert [[work.name for work in part] for part in cut] == [["a"], ["b", "c", "d", "e"], ["f"]]
    assert [[work.name for work in part] for part in segments(works, None)] == [list(sizes)]
    assert all(sum(min(work.tasks, 8) + 1 for work in part) <= 9 for part in cut)


def test_memory_that_slurm_takes_back_is_called_out_of_memory(strict_cluster: StrictCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    run.step("validate", 2, [])
    # Under sacct's eyes as well as without it: only SLURM's own log says why.
    run.fault("validate", 1, "#always\nkept = b'x' * 400_000_000; time.sleep(60)")
    run.submit()
    run.wait()
    state = run.state("validate")
    assert (state.phase, state.retries, state.reasons) == (StepPhase.STOPPED, 0, {"out of memory": [1]}), run.logs()


def test_one_mail_tells_that_a_run_has_ended_and_none_that_a_gate_was_retried(
    strict_cluster: StrictCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path / "abo run", mail="ada@example.org")
    run.step("validate", 2, [])
    run.step("generate", 1, ["validate"])
    run.fault("generate", 0, "os.kill(os.getpid(), 9)")
    run.submit()
    run.wait()
    run.wait_for(lambda: [mail for mail in strict_cluster.mails if "abo-run" in mail])
    (mail,) = [mail for mail in strict_cluster.mails if "abo-run" in mail]
    assert "ada@example.org" in mail and "gate-generate.abo-run." in mail and "COMPLETED" in mail


def test_one_mail_tells_that_a_run_has_stopped(strict_cluster: StrictCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "stopped", mail="ada@example.org")
    run.step("validate", 2, [])
    run.step("generate", 1, ["validate"])
    run.fault("validate", 0, "sys.exit(1)")
    run.submit()
    run.wait()
    run.wait_for(lambda: [mail for mail in strict_cluster.mails if ".stopped." in mail])
    (mail,) = [mail for mail in strict_cluster.mails if ".stopped." in mail]
    assert re.search(r"gate-validate\.stopped\..*FAILED", mail)


def test_a_run_begins_after_the_jobs_that_the_profile_names(strict_cluster: StrictCluster, tmp_path: Path) -> None:
    wrap = ["sbatch", "--parsable", "--mem=10M", "--output=/dev/null", "--wrap"]
    first = strict_cluster.run(*wrap, "sleep 3; exit 1").strip()
    run = SmallRun(tmp_path, after=[int(first)])
    run.step("validate", 1, [])
    run.submit()
    assert {job.reason for job in run.jobs()} == {"Dependency"}
    run.wait()
    with pytest.raises(SlurmError, match=f"Job {first}, which this run is to follow, ended as FAILED"):
        run.submit()
    assert not run.attempts("validate", 0)
    second = strict_cluster.run(*wrap, "true").strip()
    after = SmallRun(tmp_path, after=[second])
    after.steps = run.steps
    after.submit()
    after.wait()
    assert after.records() == after.undisturbed()


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ({"memory": "none"}, "NumCPUs=1"),
        ({"memory_per_cpu": "50M"}, "MinMemoryCPU=50M"),
        ({"gpus": 1, "gpu_option": "gres"}, "TresPerNode=gres:gpu:1"),
    ],
)
def test_resources_are_asked_for_as_the_site_wants_it(
    strict_cluster: StrictCluster, tmp_path: Path, asked: dict[str, object], granted: str
) -> None:
    run = SmallRun(tmp_path / "my run", seconds=60, stages={"validate": asked})
    run.step("validate", None, [])
    (state,) = run.submit()
    shown = strict_cluster.run("scontrol", "show", "job", state.jobs[0].id)
    assert granted in shown
    assert re.search(rf"JobName=validate\.{run.chain.token()}\n", shown)
    assert run.chain.token().startswith("my-run.")
    assert f"Comment=product-vqa {run.folder}" in shown
    gate = strict_cluster.run("scontrol", "show", "job", state.gate)
    assert "TimeLimit=00:30:00" in gate, "longer than the partition allows"
    cancel(run.chain.token())
