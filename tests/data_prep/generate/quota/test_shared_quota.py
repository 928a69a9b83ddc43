"""Two runs of one user ask the same Google project: together they stay within its limits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from data_prep.demo.catalogue import render
from data_prep.generate.quota.rate_limit import CLOCK_SKEW, MAX_DELAY, RateLimitSlots, limits_folder
from data_prep.generate.settings import GenerateSettings
from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import RunDir
from tests.conftest import ROOT, environment, launch, launch_args, launch_command, output, write_config

PER_MINUTE, PER_DAY = 240, 30


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    render(folder, products=40, seed=3)
    return folder


def test_two_launches_at_once_stay_within_the_rate_and_the_day_of_their_project(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-key")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limits = {"requests_per_minute": PER_MINUTE, "requests_per_day": PER_DAY}
    with StandIn(collection / "facts.jsonl", StandInOptions(requests_per_day=PER_DAY)) as server:
        generate = {"endpoint": server.url, "shards": 1, "quota": limits, "min_usable": 0}
        config = write_config(tmp_path / "run.yaml", collection, generate=generate)
        runs = [launch_args(config, tmp_path / name) for name in ("one", "two")]
        for options in runs:
            done = launch(*options, "--stages", "prepare,validate")
            assert done.returncode == 0, output(done)
        tasks = [
            subprocess.Popen(
                launch_command(*options, "--stages", "generate"),
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for options in runs
        ]
        said = [task.communicate(timeout=200)[0] for task in tasks]
    assert all(f"all {PER_DAY} requests of" in text and "midnight Pacific" in text for text in said), said
    assert [entry["outcome"] for entry in server.entries] == ["ok"] * PER_DAY  # the server never had to refuse one
    times = sorted(entry["at"] for entry in server.entries)
    spacing = RateLimitSlots(tmp_path, PER_MINUTE, lambda: False).spacing
    assert times[-1] - times[0] >= (PER_DAY - 1) * spacing - MAX_DELAY - 2 * CLOCK_SKEW


def test_a_stand_in_s_quota_stays_in_its_run(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    section = {
        "shards": 1,
        "quota": {"requests_per_minute": 6000},
        "stand_in": {"answers": str(collection / "facts.jsonl")},
    }
    config = write_config(tmp_path / "run.yaml", collection, generate=section)
    done = launch(*launch_args(config, tmp_path / "run"), "--stages", "prepare,validate,generate")
    assert done.returncode == 0, output(done)
    assert not (tmp_path / "cache" / "product-vqa").exists() and RunDir(tmp_path / "run").stand_in_quota.is_dir()


def test_limits_belong_to_a_project_and_a_model_and_names_are_folder_names(tmp_path: Path) -> None:
    known = {
        limits_folder(tmp_path, project, model)
        for project in ("mine", "lab", "a/b")
        for model in ("gemini-3.5-flash-lite", "models/gemini-3.5-flash-lite", "Qwen/Qwen3-VL-8B")
    }
    assert len(known) == 6 and all(folder.parent.parent == tmp_path for folder in known)


def test_the_quota_folder_is_in_the_users_cache_unless_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert GenerateSettings().quota_folder == tmp_path / "product-vqa" / "quota"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert GenerateSettings().quota_folder == tmp_path / "home" / ".cache" / "product-vqa" / "quota"
    assert GenerateSettings(quota_folder=Path("~/quota")).quota_folder == tmp_path / "home" / "quota"
