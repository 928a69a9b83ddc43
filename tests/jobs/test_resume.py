"""``launch.py resume`` goes on with a run as it was configured and launched; nothing has to be typed again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.run.claim import claimed
from jobs.run.layout import RunDir
from tests.conftest import launch, launch_args, output, write_config


@pytest.fixture
def begun(tmp_path: Path, catalogue: Path) -> Path:
    """A run of which two stages were asked for, under a key that its file does not have."""
    config = write_config(tmp_path / "c.yaml", catalogue)
    arguments = launch_args(
        config, tmp_path / "run", "--stages", "prepare,validate", "--set", "prepare.max_items=7", "--dry-run"
    )
    assert launch(*arguments).returncode == 0
    done = launch(*arguments[:-1])
    assert done.returncode == 0, output(done)
    config.unlink()
    return tmp_path / "run"


def run_file(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_resume_takes_configuration_and_stages_from_the_run_itself(begun: Path) -> None:
    before = run_file(begun)["config"]
    (begun / "2_validate/shards/00000/done.json").unlink()
    done = launch("resume", begun)
    assert done.returncode == 0, output(done)
    assert "Only the stages of its last launch, prepare,validate" in done.stdout
    assert "generate" not in done.stdout
    assert (begun / "2_validate/shards/00000/done.json").is_file()
    after = run_file(begun)
    assert after["config"] == before and before["prepare"]["max_items"] == 7
    assert [one["options"] for one in after["launches"]] == [{"cluster": "local", "stages": "prepare,validate"}] * 2


def test_resume_changes_what_set_names_and_refuses_what_it_cannot_know(begun: Path) -> None:
    done = launch("resume", begun, "--set", "curate.seed=99", "--stages", "prepare")
    assert done.returncode == 0, output(done)
    assert "configuration changed" in done.stdout
    config = run_file(begun)["config"]
    assert (config["curate"]["seed"], config["prepare"]["max_items"]) == (99, 7)
    wrong = launch("resume", begun, "--set", "curate.sed=1")
    assert wrong.returncode == 2 and "Did you mean 'seed'?" in output(wrong)


def test_resume_waits_for_no_claim_that_another_command_holds(begun: Path) -> None:
    with claimed(RunDir(begun)):
        done = launch("resume", begun)
    assert done.returncode == 2 and "is in use by" in output(done)


def test_a_shipped_configuration_goes_by_its_name(tmp_path: Path, catalogue: Path) -> None:
    variables = {"DEMO_CATALOGUE": str(catalogue), "DEMO_BASE": "none/here"}
    done = launch("--cluster", "local", "--config", "demo", "--dry-run", cwd=tmp_path, **variables)
    assert done.returncode == 0, output(done)
    assert "demo" in done.stdout
    wrong = launch("plan", "--config", "dmo")
    assert wrong.returncode == 2 and "Did you mean 'demo'?" in output(wrong)
