"""slurm/*.sbatch run the same tasks as launch.py and requeue themselves in the same way."""

import os
import re
import sys
from pathlib import Path

import pytest

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
    (folder / "slurm").symlink_to(standin.ROOT / "slurm")
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
    failing = submit(slurm_cluster, "--wait-all-nodes=0", "slurm/train.sbatch", run.folder)
    wait_for_job(run, slurm_cluster, failing, project)
    assert "usage: sbatch slurm/train.sbatch RUN_DIR MODEL" in output(project)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_prints_the_usage_that_its_head_states(script: Path) -> None:
    text = script.read_text()
    assert re.findall(r"#   (sbatch .*)", text) == re.findall(r'echo "usage: (sbatch .*?)"', text)
    assert f"slurm/{script.name}" in text
