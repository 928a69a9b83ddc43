"""``launch.py status`` says what is going on now, also while a step runs, and on a narrow terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.files import write_json
from jobs.backends import local
from jobs.backends.stop import StopFlag
from jobs.config import load_config
from jobs.progress_line import ProgressLine
from jobs.run.claim import claimed, is_held
from jobs.run.layout import RunDir, Step
from jobs.run.run import open_run
from jobs.stages.train import Train
from jobs.verbs.status import as_dict, show_status
from tests.conftest import write_config


@pytest.fixture
def training(tmp_path: Path, catalogue: Path) -> RunDir:
    """A run in whose training 40 of 90 steps are done, at half a step a second."""
    config = load_config(write_config(tmp_path / "c.yaml", catalogue))
    run, _ = open_run(tmp_path / "run", config, ["test"])
    folder = run.step_folder(Step("train", "blip"))
    folder.mkdir(parents=True)
    write_json(folder / "begun.json", {})
    lines = [{"step": n, "max_steps": 90, "loss": 1 / n, "at": 1000.0 + 2 * n} for n in (10, 20, 30, 40)]
    lines[0]["at"] = -5000.0  # before an interruption
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 5')
    (folder / "validation.jsonl").write_text('{"step": 40, "exact_match": 0.25}\n')
    return run


def shown(run: RunDir, width: int) -> str:
    said = io.StringIO()
    show_status(run.path, Console(file=said, width=width), as_json=False)
    return said.getvalue()


@pytest.mark.parametrize("width", [60, 140])
def test_a_training_shows_phase_loss_validation_rate_and_time_left(training: RunDir, width: int) -> None:
    with claimed(training):
        said = shown(training, width)
    assert all(len(line) <= width for line in said.splitlines()), said
    words = " ".join(said.split())
    for part in ("step 40 of 90", "loss 0.025", "validation 0.250", "0.5/s", "100 s left".replace("100 s", "2 min")):
        assert part in words, said
    assert "…" not in said


def test_what_a_launch_works_on_is_told_from_what_was_stopped(training: RunDir) -> None:
    assert not is_held(training)
    assert "stopped" in shown(training, 140)
    with claimed(training):
        assert is_held(training)
        assert "running" in shown(training, 140)
        assert as_dict(training, [], None)["running"]


def test_a_training_that_has_begun_is_loading_and_then_finishing(training: RunDir) -> None:
    stage = Train(training, load_config(training.path.parent / "c.yaml"), "blip")
    log = training.step_folder(Step("train", "blip")) / "log.jsonl"
    assert stage.status().phase == "training"
    log.write_text('{"step": 90, "max_steps": 90, "loss": 0.1, "at": 1.0}\n')
    assert stage.status().phase == "finishing"
    log.unlink()
    assert (stage.status().phase, stage.status().state) == ("loading", "partial")


def test_a_launch_without_a_terminal_prints_a_line_now_and_then(
    tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgressLine, "EVERY", 0.5)
    monkeypatch.setattr(StopFlag, "install", lambda self: self)  # this process's signals are pytest's
    answers = {"answers": str(catalogue / "facts.jsonl"), "latency": 0.3}
    path = write_config(tmp_path / "c.yaml", catalogue, generate={"stand_in": answers, "concurrency": 1, "shards": 1})
    config = load_config(path)
    run, _ = open_run(tmp_path / "run", config, ["test"])
    said = io.StringIO()
    steps = [Step("prepare"), Step("validate"), Step("generate")]
    assert local.run_local(run, config, steps, 2, Console(file=said, width=120)) == 0, said.getvalue()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("generate: ")]
    assert any(" of 40 items" in line for line in lines), said.getvalue()
