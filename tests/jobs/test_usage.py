"""What tasks used is counted for every attempt: real tasks, one of them killed, its stage deleted afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.files import read_json
from jobs.backends.meter import held_gpus
from jobs.run.layout import RunDir, Step
from jobs.run.usage import used_by
from tests.conftest import ROOT, environment, launch, launch_args, output, write_config

pytestmark = pytest.mark.xdist_group("pipeline")

TRAIN = Step("train", "blip")
# The task as every back end runs it, but for the time between two refreshes.
PROGRAM = "import sys; from jobs.backends import meter, task; meter.REFRESH_SECONDS = 0.1; sys.exit(task.main())"


def start(run: RunDir, **extra: str) -> subprocess.Popen[bytes]:
    """A training task that believes that it has two GPUs."""
    command = [sys.executable, "-c", PROGRAM, str(run.path), str(TRAIN)]
    variables = environment(CUDA_VISIBLE_DEVICES="0,1", **extra)
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_attempt_is_counted_and_survives_the_deletion_of_its_stage(tmp_path: Path, catalogue: Path) -> None:
    run = RunDir(tmp_path / "run")
    config = write_config(tmp_path / "c.yaml", catalogue)
    done = launch(*launch_args(config, run.path, "--stages", "prepare,validate,generate,curate"))
    assert done.returncode == 0, output(done)

    killed = start(run)
    while not (files := list(run.attempts(TRAIN).glob("*.json"))) or (read_json(files[0]) or {})["seconds"] < 1:
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    first = read_json(files[0])
    assert first and not first["ended"]
    assert first["gpus"] == 2 and first["cores"] >= 1 and first["cpu_seconds"] > 0 and first["max_rss_bytes"] > 20e6

    assert start(run).wait() == 0
    second = read_json(next(path for path in run.attempts(TRAIN).glob("*.json") if path != files[0]))
    assert second and second["ended"]

    shutil.rmtree(run.stage_folder("train"))
    said = launch("status", run.path, "--json")
    steps = {step["step"]: step["used"] for step in json.loads(said.stdout)["steps"]}
    assert steps["train:blip"] == {
        "attempts": 2,
        "gpu_hours": pytest.approx(2 * (first["seconds"] + second["seconds"]) / 3600),
        "cpu_hours": pytest.approx((first["cpu_seconds"] + second["cpu_seconds"]) / 3600),
        "max_rss_bytes": max(first["max_rss_bytes"], second["max_rss_bytes"]),
        "proposal": "",
    }
    assert steps["validate"]["attempts"] == 2 and steps["validate"]["gpu_hours"] == 0 < steps["validate"]["cpu_hours"]
    assert "GPU h" in launch("status", run.path, COLUMNS="200").stdout


def test_an_attempt_that_fails_is_counted(tmp_path: Path, catalogue: Path) -> None:
    run = RunDir(tmp_path / "run")
    config = write_config(tmp_path / "c.yaml", catalogue)
    assert launch(*launch_args(config, run.path, "--stages", "prepare")).returncode == 0
    assert start(run).wait() == 1, "there are no splits to train on"
    assert used_by(run, TRAIN).attempts == 1


@pytest.mark.parametrize(
    ("variables", "needs_gpu", "held"),
    [
        ({"CUDA_VISIBLE_DEVICES": "3"}, True, 1),
        ({"CUDA_VISIBLE_DEVICES": "3"}, False, 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, True, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "LOCAL_WORLD_SIZE": "2"}, True, 1),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, True, 1),
        ({"SLURM_GPUS_ON_NODE": "1", "SLURM_NTASKS_PER_NODE": "1"}, False, 1),
    ],
)
def test_gpus_count_while_they_are_held_and_ranks_share_them(
    variables: dict[str, str], needs_gpu: bool, held: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "SLURM_NTASKS_PER_NODE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert held_gpus(needs_gpu=needs_gpu) == held
