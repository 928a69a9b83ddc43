"""A run on a real SLURM leaves no key in submitit's pickles and scripts, in the logs, or in what the queue shows."""

import time
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.demo.catalogue import render
from jobs.backends import slurm
from jobs.config import validate_config
from jobs.pipeline import run_status, steps_of
from jobs.run.run import open_run
from slurm.queue import live_jobs
from tests.chaos.secrets import Watch, leaks, leaks_in_files
from tests.chaos.test_keys import GOOD, KEYS, REJECTED, stand_in
from tests.slurm.test_pipeline import PROFILE, STAGES
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def test_no_key_is_in_a_file_of_a_slurm_run_or_in_what_the_queue_shows(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    catalogue = tmp_path / "catalogue"
    render(catalogue, products=12, seed=3)
    shown: list[str] = []
    with Watch(KEYS.values()) as watch, stand_in(catalogue / "facts.jsonl", tmp_path / "log.jsonl", GOOD) as url:
        tree = {
            "data": {"root": str(catalogue)},
            "validate": {"shards": 2},
            "generate": {
                "shards": 2,
                "generator": "google_genai",
                "endpoint": url,
                "timeout": 2.0,
                "projects": [{"name": "mine", "keys": list(KEYS)}],
            },
            "models": {"tiny": {"kind": "blip", "weights": "not-used-here"}},
        }
        config = validate_config(tree, "test")
        run, _ = open_run(tmp_path / "run", config, ["test"])
        assert slurm.submit(run, config, steps_of(config, STAGES), PROFILE, Console()) == 0
        token = slurm.chain_folder(run).token()
        deadline = time.monotonic() + 150
        while jobs := live_jobs(token):
            assert time.monotonic() < deadline, "timed out waiting"
            shown.append(slurm_cluster.run("scontrol", "show", "job", "--details", check=False))
            shown += [slurm_cluster.run("scontrol", "write", "batch_script", job.id, "-", check=False) for job in jobs]
            time.sleep(0.5)
    assert [step.state for step in run_status(run, config) if step.step in STAGES] == ["done"] * 3
    logs = "".join(path.read_text() for path in (run.path / "logs").rglob("*.log"))
    assert f"The key ending in {REJECTED[-4:]} of project mine was rejected" in logs
    pickles = [path for path in run.path.rglob("*.pkl") if path.is_file()]
    assert pickles, "submitit should leave pickles"
    assert any("jobs.backends.task" in line and " generate" in line for line in watch.seen)
    assert any("#SBATCH" in text for text in shown)
    printed = capfd.readouterr()
    assert leaks("".join([*shown, printed.out, printed.err]).encode(), KEYS.values()) == []
    assert watch.leaks == []
    assert leaks_in_files(tmp_path, KEYS.values()) == []
