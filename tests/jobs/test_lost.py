"""A scratch file system deletes what is old: status and doctor name what is gone and what it would cost again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import RunDir
from jobs.shards.journal import journal_files
from tests.conftest import launch, launch_args, output, write_config

KEY = "test-key"
STAGES = "prepare,validate,generate,curate"


@pytest.fixture
def paid(tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDir, Path]:
    """A run whose replies were paid for, and its configuration."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with StandIn(catalogue / "facts.jsonl", StandInOptions(keys=[KEY])) as server:
        config = write_config(tmp_path / "c.yaml", catalogue, generate={"endpoint": server.url})
        done = launch(*launch_args(config, tmp_path / "run", "--stages", STAGES))
        assert done.returncode == 0, output(done)
    return RunDir(tmp_path / "run"), config


def steps(run: RunDir) -> dict[str, Any]:
    shown = launch("status", run.path, "--json")
    assert shown.returncode == 0, output(shown)
    return {step["step"]: step for step in json.loads(shown.stdout)["steps"]}


def test_of_a_run_that_lost_nothing_nothing_is_said(paid: tuple[RunDir, Path]) -> None:
    assert "gone" not in output(launch("status", paid[0].path))
    doctor = launch("doctor", "--config", paid[1], "--run-dir", paid[0].path)
    assert "finished files: all there" in output(doctor)


def test_status_and_doctor_name_lost_records_with_items_and_dollars(paid: tuple[RunDir, Path]) -> None:
    run, config = paid
    whole = steps(run)["generate"]
    shard = run.store("generate").shard(1)
    marker = json.loads((shard / "done.json").read_bytes())
    for path in journal_files(shard):
        path.unlink()
    run.split("val").unlink()
    said = f"generate: 1 files that were finished are gone with {marker['items']} items, which cost ${marker['spending']['dollars']:,.2f}"
    assert 0 < marker["items"] < whole["items"] and re.search(r"\$0\.0[1-9]", said), said
    assert said in output(launch("status", run.path))
    assert any(said in warning for warning in steps(run)["generate"]["warnings"])
    assert any("1 files that were finished are gone" in warning for warning in steps(run)["curate"]["warnings"])
    doctor = output(launch("doctor", "--config", config, "--run-dir", run.path))
    assert "files of generate: 1 files that were finished are gone" in doctor and "files of curate: 1" in doctor
    assert "files of validate" not in doctor


def test_a_stage_that_is_gone_altogether_is_named_as_long_as_a_later_one_is_there(paid: tuple[RunDir, Path]) -> None:
    run, _ = paid
    assert launch("report", run.path).returncode == 0
    shutil.rmtree(run.stage_folder("generate"))
    said = output(launch("status", run.path))
    assert re.search(
        r"generate: all of its files are gone, though a later step was done from them. It cost \$0\.0\d", said
    )
    assert said.count("all of its files are gone") == 1, "train was never run, whatever the report holds"
