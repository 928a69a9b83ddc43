"""The real pipeline on a real SLURM: a disturbed run ends with the records of an undisturbed one and pays nothing twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from data_prep.demo.catalogue import render
from data_prep.outcomes import UserError
from jobs.backends import slurm
from jobs.config import Config, validate_config
from jobs.pipeline import steps_of
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run, open_run
from jobs.shards.journal import ReadReport
from jobs.shards.store import read_records
from jobs.verbs import doctor
from jobs.verbs.logs import find_logs
from jobs.verbs.status import run_status
from slurm.profile import Profile, build_profile
from slurm.queue import live_jobs
from tests.conftest import launch, output
from tests.slurm_cluster.cluster import SlurmCluster, cmdline
from vqa.models.tiny import make_tiny_model

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("prepare", "validate", "generate")
CONCURRENCY = 4
PROFILE: Profile = build_profile(
    {"defaults": {"cpus": 1, "memory": "900M", "time": 30}, "grace_seconds": 20}, STAGES, "test"
)


def configuration(catalogue: Path, shards: int, latency: float) -> Config:
    tree: dict[str, Any] = {
        "data": {"root": str(catalogue)},
        "validate": {"shards": shards},
        "generate": {
            "shards": shards,
            "concurrency": CONCURRENCY,
            "stand_in": {"answers": str(catalogue / "facts.jsonl"), "latency": latency},
        },
        "models": {"tiny": {"kind": "blip", "weights": "not-used-here"}},
    }
    return validate_config(tree, "test")


def records(run: RunDir, stage: str) -> dict[str, str]:
    """The outcome of every item, without what differs between runs."""
    found = {}
    for record in read_records(run.store(stage), ReadReport()):
        if record.ok and record.value:
            found[record.key] = str(record.value["text" if stage == "generate" else "sha256"])
        else:
            found.setdefault(record.key, record.reason)
    return found


def paid(run: RunDir) -> list[str]:
    """The items of all replies on disk, duplicates included."""
    return [record.key for record in read_records(run.store("generate"), ReadReport()) if record.ok]


def reference(catalogue: Path, folder: Path) -> RunDir:
    run, _ = open_run(folder, configuration(catalogue, 1, 0.0), ["test"])
    for step, shard in (("prepare", []), ("validate", ["--shard", "0"]), ("generate", ["--shard", "0"])):
        command = [sys.executable, "-m", "jobs.backends.task", str(run.path), step, *shard]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return run


def wait_until(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.2)


def test_requeues_and_kills_lose_no_record_and_pay_twice_only_what_was_in_flight(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    catalogue = tmp_path / "catalogue"
    render(catalogue, products=40, seed=3)
    expected = reference(catalogue, tmp_path / "undisturbed")

    config = configuration(catalogue, shards=3, latency=1.2)
    run, _ = open_run(tmp_path / "a run's $(folder)", config, ["test"])
    steps = steps_of(config, STAGES)
    console = Console(quiet=True)
    assert slurm.submit(run, config, steps, PROFILE, console) == 0
    with pytest.raises(UserError, match="already in SLURM's queue"):
        slurm.submit(run, config, steps, PROFILE, console)
    token = slurm.chain_folder(run).token()

    wait_until(lambda: len(paid(run)) >= 6)
    counts = slurm.queue_counts(run)
    assert counts is not None
    assert counts["generate"]["RUNNING"] == 3
    elements = [job for job in live_jobs(token) if job.step == "generate" and not job.is_gate]
    slurm_cluster.run("scontrol", "requeue", elements[0].id)
    shard = elements[1].id.partition("_")[2]
    tasks = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and f"-m jobs.backends.task {run.path} generate --shard {shard}" in cmdline(int(entry.name))
    ]
    for pid in tasks:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not live_jobs(token))

    assert slurm.stopped_steps(run) == {}
    for stage in ("validate", "generate"):
        assert records(run, stage) == records(expected, stage)
    assert len(paid(run)) - len(set(paid(run))) <= 2 * CONCURRENCY
    status = {step.step: step for step in run_status(run, config)}
    assert [status[stage].state for stage in STAGES] == ["done"] * 3
    assert status["generate"].items == status["generate"].done + status["generate"].failed
    assert slurm.pending_work(run, config, steps, PROFILE) == [], "done, and yet it would be submitted"


def test_a_run_that_fails_records_why_and_cancels_the_rest(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue"
    render(catalogue, products=4, seed=3)
    config = configuration(catalogue, shards=1, latency=0.0)
    run, _ = open_run(tmp_path / "run", config, ["test"])
    (catalogue / "facts.jsonl").write_text("not an answer")
    slurm.submit(run, config, steps_of(config, STAGES), PROFILE, Console(quiet=True))
    wait_until(lambda: not live_jobs(slurm.chain_folder(run).token()))
    stopped = slurm.stopped_steps(run)
    assert list(stopped) == ["generate"]
    assert str(run.path / "logs" / "generate") in stopped["generate"]


def test_the_doctor_checks_the_nodes_and_leaves_nothing_behind(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    render(tmp_path / "catalogue", products=2, seed=3)
    config = configuration(tmp_path / "catalogue", shards=2, latency=0.0)
    run = RunDir(tmp_path / "not begun")
    checks = doctor.diagnose(run, config, steps_of(config, STAGES), PROFILE)
    assert [check for check in checks if check.ok is False] == []
    assert any("import jobs.backends.task" in check.name for check in checks)
    assert not run.path.exists()
    nowhere = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path / "nowhere"})})
    wrong = doctor.diagnose(run, nowhere, steps_of(config, STAGES), None)
    assert [check.name for check in wrong if check.ok is False] == ["data"]


def test_the_newest_log_of_every_task_is_found(tmp_path: Path) -> None:
    render(tmp_path / "catalogue", products=4, seed=3)
    config = configuration(tmp_path / "catalogue", shards=2, latency=0.0)
    run, _ = open_run(tmp_path / "run", config, ["test"])
    steps = steps_of(config, STAGES[:2])
    folder = run.logs(steps[1])
    folder.mkdir(parents=True)
    for name in ("00001.20990101T000000.log", "00001.20980101T000000.job7_1.log"):
        (folder / name).write_text("error: the disk is full\n")
    (found,) = find_logs(run, config, steps)
    assert (found.path.name, found.attempts, found.error) == ("00001.20990101T000000.log", 2, "the disk is full")
    assert find_logs(run, config, steps, failed=True) == [found]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_command_reaches_the_report_though_two_node_training_is_requeued(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    catalogue = tmp_path / "catalogue"
    render(catalogue, products=60, seed=3)
    answers = [orjson.loads(line)["qas"] for line in (catalogue / "facts.jsonl").read_bytes().splitlines()]
    texts = [text for qas in answers for qa in qas for text in (qa["question"], qa["answer"])]
    weights = make_tiny_model("blip", tmp_path / "tiny-blip", texts)
    tree: dict[str, Any] = {
        "data": {"root": str(catalogue)},
        "validate": {"shards": 4},
        "generate": {"shards": 3, "stand_in": {"answers": str(catalogue / "facts.jsonl")}},
        "models": {"blip": {"kind": "blip", "weights": str(weights)}},
        "train": {"epochs": 6, "eval_steps": 20, "validation_images": 8},
        "evaluate": {"shards": 2},
    }
    (tmp_path / "config.yaml").write_bytes(orjson.dumps(tree))  # JSON is YAML
    (tmp_path / "site.yaml").write_text(
        "defaults: {cpus: 1, memory: 900M, time: 30}\ngrace_seconds: 20\nstages: {train: {nodes: 2, gpus: 1}}\n"
    )
    command = [
        "--cluster",
        "slurm",
        "--profile",
        str(tmp_path / "site.yaml"),
        "--config",
        str(tmp_path / "config.yaml"),
    ]
    queued = launch(*command, "--run-dir", str(tmp_path / "run"))
    assert queued.returncode == 0, output(queued)
    run, config = load_run(tmp_path / "run")
    token = slurm.chain_folder(run).token()
    log = run.step_folder(Step("train", "blip")) / "log.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size)
    (training,) = [job for job in live_jobs(token) if job.step == "train:blip" and not job.is_gate]
    slurm_cluster.run("scancel", "--signal=USR2", f"{training.id}.0")
    wait_until(lambda: not live_jobs(token), 300)
    assert slurm.stopped_steps(run) == {}
    assert {status.state for status in run_status(run, config)} == {"done"}
    assert (run.report / "index.html").is_file()
    again = launch(*command, "--run-dir", str(tmp_path / "run"))
    assert again.returncode == 0 and "done already" in output(again)
    logs = sorted(run.logs(Step("train", "blip")).glob("task.*.rank0.log"))
    assert len(logs) == 2
    assert "training from the beginning" in logs[0].read_text()
    assert "training from the beginning" not in logs[1].read_text(), "it did not resume from the checkpoint"
