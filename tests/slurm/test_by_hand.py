"""slurm/*.sbatch run the same tasks as launch.py and requeue themselves in the same way."""

import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from slurm.submit import Cluster, StepWork
from tests.slurm import standin
from tests.slurm.conftest import SmallRun
from tests.slurm_cluster.cluster import SlurmCluster

SCRIPTS = sorted((standin.ROOT / "slurm").glob("*.sbatch"))

# Replaces the real tasks: same command line, but the work of the small pipeline.
TASK = f"""
import sys
sys.path.insert(0, {str(standin.ROOT)!r})
from tests.slurm import standin
run_dir, step, *shard = sys.argv[1:]
sys.argv[1:] = ["task", run_dir, step, *shard]
sys.exit(standin.main())
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "jobs" / "backends").mkdir(parents=True)
    (folder / "jobs" / "backends" / "task.py").write_text(TASK)
    for package in ("jobs", "jobs/backends"):
        (folder / package / "__init__.py").touch()
    shutil.copytree(standin.ROOT / "slurm", folder / "slurm")
    monkeypatch.setenv("PRODUCT_VQA_PYTHON", sys.executable)
    monkeypatch.chdir(folder)
    return folder


def submit(cluster: SlurmCluster, *arguments: object) -> str:
    small = ["--parsable", "--mem=100M", "--cpus-per-task=1"]
    return cluster.run("sbatch", *small, *map(str, arguments)).strip()


def output(project: Path) -> str:
    return "\n".join(file.read_text() for file in project.glob("*.log"))


def wait_for_job(run: SmallRun, cluster: SlurmCluster, job: str, project: Path) -> None:
    run.wait_for(lambda: not cluster.run("squeue", "--noheader", f"--jobs={job}", check=False).strip())


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_an_array_by_hand_does_all_shards_and_resumes_after_a_stop(
    slurm_cluster: SlurmCluster, project: Path, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path / "a run's folder", seconds=0.5)
    run.step("validate", 4, [])
    os.chdir(project)
    job = submit(slurm_cluster, "--array=0-3", "slurm/validate.sbatch", run.folder)
    run.wait_for(lambda: all(run.records().values()))
    slurm_cluster.run("scancel", "--signal=USR2", f"{job}_2.0")
    wait_for_job(run, slurm_cluster, job, project)
    assert run.records() == run.undisturbed(), output(project)
    assert [len(run.attempts("validate", shard)) for shard in range(4)] == [1, 1, 2, 1]


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_training_by_hand_on_two_nodes_sets_up_torch_distributed(
    slurm_cluster: SlurmCluster, project: Path, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path / "run")
    run.step("train:blip", None, [])
    os.chdir(project)
    size = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2"]
    job = submit(slurm_cluster, *size, "slurm/train.sbatch", run.folder, "blip")
    wait_for_job(run, slurm_cluster, job, project)
    rows = sorted(file.read_text().split() for file in run.attempts("train:blip", None))
    assert [row[:3] for row in rows] == [["0", "0", "4"], ["1", "1", "4"], ["2", "0", "4"], ["3", "1", "4"]]
    assert len({(row[3], row[4]) for row in rows}) == 1
    assert rows[0][3] != "-" and socket.gethostbyname(rows[0][3]), "no node's name is its host name here"
    assert len({row[6] for row in rows}) == 2
    failing = submit(slurm_cluster, "--wait-all-nodes=0", "slurm/train.sbatch", run.folder)
    wait_for_job(run, slurm_cluster, failing, project)
    assert "usage: sbatch slurm/train.sbatch RUN_DIR MODEL" in output(project)


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_script_works_from_any_folder_and_writes_its_log_into_the_run(
    slurm_cluster: SlurmCluster, project: Path, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path / "a run's folder")
    run.step("validate", 2, [])
    os.chdir(tmp_path)
    job = submit(slurm_cluster, "--array=0-1", project / "slurm" / "validate.sbatch", "a run's folder")
    wait_for_job(run, slurm_cluster, job, project)
    assert run.records() == run.undisturbed(), output(tmp_path)
    logs = sorted((run.folder / "logs" / "validate").glob("*.log"))
    assert [log.name.partition(".")[0] for log in logs] == ["00000", "00001"]
    assert logs[0].read_text().startswith(f"# SLURM job {job}_0, attempt 1, on n")


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_the_scripts_of_a_dry_run_can_be_pasted(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "it's a run", seconds=0.5)
    run.step("validate", 4, [])
    run.step("train:blip", None, ["validate"])
    run.steps[0] = StepWork(**{**run.steps[0].__dict__, "shards": [1, 3]})
    os.chdir(tmp_path)
    for work in run.steps:
        (tmp_path / "pasted.sh").write_text(Cluster(run.profile, run.chain.path, "RUN").script_by_hand(work))
        job = slurm_cluster.run("sbatch", "--parsable", "pasted.sh").strip()
        if work.shards:
            run.wait_for(lambda: run.attempts("validate", 3) and run.records()["validate", 3])
            slurm_cluster.run("scancel", "--signal=USR2", f"{job}_3.0")  # it requeues itself
        wait_for_job(run, slurm_cluster, job, tmp_path)
    assert run.records() == run.undisturbed(), output(tmp_path)
    assert [len(run.attempts("validate", shard)) for shard in range(4)] == [0, 1, 0, 2]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_prints_the_usage_that_its_head_states(script: Path) -> None:
    text = script.read_text()
    assert re.findall(r"#   (sbatch .*)", text) == re.findall(r'echo "usage: (sbatch .*?)"', text)
    assert f"slurm/{script.name}" in text
