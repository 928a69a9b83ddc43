"""A finished run is moved, write-protected, and everything that it was made from is gone: what still works, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from data_prep.demo.catalogue import render
from data_prep.files import FOLDER, with_folder, without_folder
from jobs.run.contents import weights_identity
from jobs.run.layout import RunDir
from jobs.run.run import load_run
from slurm.chain import Chain, ChainFolder, StepState
from slurm.profile import Profile
from slurm.submit import StepWork
from tests.conftest import ROOT, environment, launch, launch_args, launch_command, output, tiny_base, write_config

pytestmark = pytest.mark.xdist_group("moved")  # one worker makes the run, once


def held_back(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run launch.py as a process that write protection holds back, as it does not for root."""
    command = launch_command(*arguments)
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root writes everywhere; needs setpriv to give that up")
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def write_protected(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, its base inside of it, in another place than it was made; catalogue and configuration are gone."""
    place = tmp_path_factory.mktemp("place")
    render(place / "catalogue", products=40, seed=3)
    config = write_config(place / "c.yaml", place / "catalogue")
    assert launch(*launch_args(config, place / "run", "--stages", "prepare")).returncode == 0
    base = shutil.copytree(tiny_base(), place / "run" / "base")
    models = {"blip": {"kind": "blip", "weights": str(base), "batch_size": 10, "gradient_accumulation": 1}}
    config = write_config(place / "c.yaml", place / "catalogue", models=models)
    done = launch(*launch_args(config, place / "run"))
    assert done.returncode == 0, output(done)
    image = next((place / "catalogue").rglob("*.jpg"))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(image, elsewhere / "asked.jpg")
    (place / "run").rename(elsewhere / "run")
    shutil.rmtree(place)
    write_protected(elsewhere / "run")
    yield elsewhere / "run"
    for folder in [path for path in (elsewhere / "run").rglob("*") if path.is_dir()] + [elsewhere / "run"]:
        folder.chmod(0o755)


def test_status_and_logs_of_a_moved_run_need_nothing_but_the_run(moved: Path) -> None:
    shown = held_back("status", moved, "--json")
    assert shown.returncode == 0, output(shown)
    assert {step["state"] for step in json.loads(shown.stdout)["steps"]} == {"done"}
    logs = held_back("logs", moved)
    assert logs.returncode == 0 and f"{moved}/logs/train-blip/task." in logs.stdout, output(logs)
    assert "There is no such log" in held_back("logs", moved, "--failed").stdout


def test_the_report_of_a_moved_run_shows_its_images_and_says_where_it_cannot_write(moved: Path, tmp_path: Path) -> None:
    refused = held_back("report", moved)
    assert refused.returncode == 2 and len(output(refused).strip().splitlines()) == 1, output(refused)
    assert f"Cannot write the run directory {moved}: Permission denied" in output(refused)
    assert "--to" in output(refused)
    written = held_back("report", moved, "--to", tmp_path / "page")
    assert written.returncode == 0, output(written)
    before, after = (moved / "8_report/index.html").read_text(), (tmp_path / "page/index.html").read_text()
    assert before.count("data:image/jpeg") == after.count("data:image/jpeg") > 5
    figures = [
        orjson.loads((folder / "report.json").read_bytes()) for folder in (moved / "8_report", tmp_path / "page")
    ]
    assert figures[0]["models"] == figures[1]["models"]


def test_predict_finds_the_base_inside_a_moved_run(moved: Path) -> None:
    adapter = moved / "6_train/blip/adapter"
    asked = ["predict", "--image", moved.parent / "asked.jpg", "--question", "What color is it?", "--adapter", adapter]
    done = launch(*asked)
    assert done.returncode == 0, output(done)
    answer = launch(*asked, "--weights", tiny_base())
    assert answer.returncode == 0 and answer.stdout == done.stdout


def test_predict_names_a_base_that_is_gone_and_takes_another(moved: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(moved / "6_train/blip/adapter", tmp_path / "a/b/c/adapter"))
    asked = ["predict", "--image", moved.parent / "asked.jpg", "--question", "What color is it?", "--adapter", adapter]
    refused = launch(*asked)
    assert refused.returncode == 2, output(refused)
    assert f"belongs to a base in {tmp_path}/a/base, which is not there" in output(refused)
    assert "--weights" in output(refused)
    assert launch(*asked, "--weights", tiny_base()).returncode == 0


def test_a_moved_run_finds_nothing_changed_and_its_paths_lead_into_it(moved: Path) -> None:
    run, config = load_run(moved)
    assert config.models["blip"].weights == str(moved / "base")
    old = orjson.loads(run.run_file.read_bytes())
    assert old["config"]["models"]["blip"]["weights"] == f"{FOLDER}/base"
    told = orjson.loads((moved / "6_train/blip/adapter/adapter_config.json").read_bytes())
    assert told["base_model_name_or_path"] == "../../../base"
    assert "base_model: ../../../base" in (moved / "6_train/blip/adapter/README.md").read_text()
    finished = [*moved.glob("[1-6]_*/**/done.json"), *moved.glob("[1-6]_*/**/settings.json")]
    assert finished and not [path for path in finished if b"/run/" in path.read_bytes()]


def test_the_files_of_a_chain_follow_a_run_that_is_moved(tmp_path: Path) -> None:
    folder, run = ChainFolder(tmp_path / "run/slurm"), tmp_path / "run"
    work = StepWork("validate", "validate", ["task", str(run)], ["gate", str(run)], str(run / "logs/validate"))
    folder.write_chain(Chain("s", "t", [[work]], Profile()))
    folder.write_step(StepState(work, [], "8", 0.0, "s", message=f"failed. Logs: {run}/logs/validate. See {run}2."))
    run.rename(tmp_path / "other")
    state = ChainFolder(tmp_path / "other/slurm").step("validate")
    assert state is not None and state.work.command == ["task", f"{tmp_path}/other"]
    assert state.message == f"failed. Logs: {tmp_path}/other/logs/validate. See {tmp_path}/run2."


@pytest.mark.parametrize("name", ["run", "a run's $(folder)", "run.1", "ru(n+", "läuft"])
def test_paths_below_a_folder_and_only_those_are_written_without_it(name: str) -> None:
    here, there = Path("/data") / name, Path("/other/place")
    value = {"a": [f"{here}/x", str(here), f"{here}2/x", f"{here}-old", 3, None], "b": {"c": f"see {here}/y, then"}}
    written = without_folder(value, here)
    assert with_folder(written, here) == value
    read = with_folder(written, there)
    assert read == {
        "a": [f"{there}/x", str(there), f"{here}2/x", f"{here}-old", 3, None],
        "b": {"c": f"see {there}/y, then"},
    }


def test_weights_are_known_by_their_content_not_by_their_path(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.run_file.write_text("{}")
    base = Path(shutil.copytree(tiny_base(), tmp_path / "base"))
    before = weights_identity(run, str(base))
    assert before.startswith("sha256:")
    moved = tmp_path / "elsewhere"
    base.rename(moved)
    assert weights_identity(run, str(moved)) == before, "moved"
    assert weights_identity(run, str(base)) == before, "gone, and known from before"
    (moved / "README.md").write_text("nothing that a model is loaded from")
    assert weights_identity(run, str(moved)) == before
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert weights_identity(run, str(moved)) != before, "exchanged"
    assert weights_identity(run, "not-on-any/hub") == "not-on-any/hub"


def test_weights_of_the_hub_are_known_by_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.run_file.write_text("{}")
    cache = tmp_path / "hub" / "models--some--model"
    for commit in ("a" * 40, "b" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = []
    for commit in ("a" * 40, "b" * 40):
        (cache / "refs" / "main").write_text(commit)
        found.append(weights_identity(run, "some/model"))
    assert found == [f"some/model@{'a' * 40}", f"some/model@{'b' * 40}"]
    shutil.rmtree(cache)
    assert weights_identity(run, "some/model") == found[1], "another machine's cache does not change what was used"


def test_weights_exchanged_under_their_path_are_noticed_and_moved_ones_are_not(moved: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(moved, tmp_path / "run"))
    for path in (run, *run.rglob("*")):
        path.chmod(0o755)
    render(tmp_path / "catalogue", products=40, seed=3)
    base = Path(shutil.move(run / "base", tmp_path / "base"))
    models = {"blip": {"kind": "blip", "weights": str(base), "batch_size": 10, "gradient_accumulation": 1}}
    config = write_config(tmp_path / "c.yaml", tmp_path / "catalogue", models=models)
    again = launch_args(config, run, "--stages", "train,evaluate")
    done = launch(*again)
    assert done.returncode == 0 and done.stdout.count("done already, skipped") == 2, output(done)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    refused = launch(*again)
    assert refused.returncode in (1, 2) and "model.weights: 'sha256:" in output(refused), output(refused)
