"""What a launch lacks is said all at once, before anything runs; what a command does not need, it does not ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_prep.files import write_json
from jobs.config import load_config
from jobs.pipeline import steps_of
from jobs.preflight import missing
from jobs.run.layout import RunDir, Step
from jobs.stages.base import StageMarker
from tests.conftest import launch, output, tiny_base, write_config


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data, no key."""
    for name in ("ABO_ROOT", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    tree = {
        "data": {"root": "$ABO_ROOT"},
        "prepare": {"max_itms": 3},
        "models": {"blip": {"kind": "blip", "weights": "/no/such/weights"}},
    }
    config.write_text(yaml.safe_dump(tree))
    done = launch("--cluster", "local", "--config", config, "--run-dir", tmp_path / "run", "--set", "train.epoch=2")
    assert done.returncode == 2, output(done)
    for words in ("5 problems", "$ABO_ROOT", "'max_items'", "'epochs'", "GEMINI_API_KEY", "/no/such/weights"):
        assert words in done.stderr
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there_is_named_beside_a_missing_key(tmp_path: Path, catalogue: Path) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue, data={"root": "/no/abo"}, generate={"endpoint": "http://x"})
    done = launch("--cluster", "local", "--config", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 2 and "/no/abo" in done.stderr and "GEMINI_API_KEY" in done.stderr, output(done)


def test_typos_of_stages_profile_and_set_do_not_hide_behind_missing_data(tmp_path: Path) -> None:
    done = launch(
        "--cluster", "slurm", "--stages", "prepar", "--profile", "genric", "--set", "curate.sed=1",
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 2
    for words in ("'prepare'", "'generic'", "'seed'", "ABO_ROOT"):
        assert words in done.stderr


def test_fetch_needs_no_data_and_names_its_own_typos() -> None:
    done = launch("fetch", "--set", f"models.blip.weights={tiny_base()}", "--set", f"models.vilt.weights={tiny_base()}")
    assert done.returncode == 0 and f"blip: {tiny_base()} is a folder" in done.stdout, output(done)
    wrong = launch("fetch", "--set", "models.blip.weigths=x")
    assert wrong.returncode == 2 and "Did you mean 'weights'?" in wrong.stderr and "ABO_ROOT" not in wrong.stderr


def test_of_a_step_that_is_done_nothing_is_asked(tmp_path: Path, catalogue: Path) -> None:
    config = load_config(write_config(tmp_path / "c.yaml", catalogue), ["data.root=/gone", "models.blip.weights=/gone"])
    run, steps = RunDir(tmp_path / "run"), steps_of(config, ["prepare", "train"])
    assert len(missing(run, config, steps)) == 2
    for step in (Step("prepare"), Step("train", "blip")):
        write_json(run.done_file(step), StageMarker({}, {}, {}, {}, {}, 0.0, 0.0))
    assert missing(run, config, steps) == []
