"""What ``plan`` says before anything is sent, and after a probe; what a launch refuses before anything runs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_prep.outcomes import UserError
from data_prep.stand_in import StandIn, StandInOptions
from jobs.options import PlanRequest
from jobs.verbs.plan import show_plan
from tests.conftest import launch, launch_args, output, write_config

KEY = "AIzaSyTest-Secret-Key-0123456789-abcd42"


def plan(config: Path, run_dir: Path, **options: Any) -> str:
    text = io.StringIO()
    show_plan(PlanRequest(config, run_dir, **options), Console(file=text, width=400))
    return text.getvalue()


def billed(server: StandIn) -> float:
    """What Google would bill for all that the server answered."""
    return sum(entry["input_tokens"] * 0.30 + entry["output_tokens"] * 2.50 for entry in server.entries) / 1e6


def test_the_plan_names_price_tokens_terms_and_the_open_teacher(tmp_path: Path, catalogue: Path) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue, generate={"stand_in": None, "max_dollars": 0.001})
    said = plan(config, tmp_path / "run")
    for words in (
        "$0.3 in and $2.5 out per million tokens (genai-prices 0.",
        "280 tokens an image (media_resolution: low)",
        "The cap of $0.00 is BELOW the estimate",
        "Gemini API Additional Terms of Service in force since 2025-05-20",
        "Qwen3-VL (Apache License 2.0)",
        "Nothing was sent, nothing was written.",
    ):
        assert words in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gemini-9-flash", ["unknown", "Set generate.prices", "has no card"]),
        ("gemini-2.5-flash", ["is shut down on 2026-12-01", "gemini-3.5-flash-lite"]),
    ],
)
def test_the_plan_says_what_is_unknown_and_what_ends_soon(
    tmp_path: Path, catalogue: Path, model: str, words: list[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue, generate={"stand_in": None, "model": model})
    said = plan(config, tmp_path / "run")
    for word in words:
        assert word in said


def test_a_probe_is_not_sent_unless_somebody_agrees(tmp_path: Path, catalogue: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with StandIn(catalogue / "facts.jsonl") as server:
        config = write_config(tmp_path / "c.yaml", catalogue, generate={"endpoint": server.url})
        with pytest.raises(UserError, match="--yes"):
            plan(config, tmp_path / "run", probe=5)
    assert not server.entries and not (tmp_path / "run").exists()


def test_a_probe_passes_over_products_whose_image_is_broken(tmp_path: Path, catalogue: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    data = tmp_path / "catalogue"
    shutil.copytree(catalogue, data)
    for number, image in enumerate(sorted((data / "images").rglob("*.jpg"))):
        if number % 2:
            image.write_bytes(b"not an image")
    with StandIn(data / "facts.jsonl") as server:
        config = write_config(tmp_path / "c.yaml", data, generate={"endpoint": server.url})
        plan(config, tmp_path / "run", probe=10, yes=True)
    assert len(server.entries) == 10 and {entry["outcome"] for entry in server.entries} == {"ok"}


def test_the_plan_after_a_probe_is_what_is_billed_and_no_reply_is_paid_twice(
    tmp_path: Path, catalogue: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    run = tmp_path / "run"
    # How many tokens it draws, and how often it thinks how long, the plan cannot know.
    with StandIn(catalogue / "facts.jsonl", StandInOptions(keys=[KEY], thoughts=200)) as server:
        config = write_config(tmp_path / "c.yaml", catalogue, generate={"endpoint": server.url})
        said = plan(config, run, probe=20, yes=True)
        assert "Probe: 20 products answered, 20 usable" in said and "±" in said
        assert len(server.entries) == 20
        planned = billed(server) * 2
        assert f"${planned:,.2f} ±" in said
        done = launch(*launch_args(config, run, "--stages", "prepare,validate,generate"))
        assert done.returncode == 0, output(done)
    images = [entry["image"] for entry in server.entries]
    assert len(images) == len(set(images)) == 40
    assert planned == pytest.approx(billed(server), rel=0.10)
    status = launch("status", run)
    assert f"planned ${planned:,.2f}, projected ${billed(server):,.2f}" in status.stdout, output(status)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "GEMINI_API_KEY"),
        ({"model": "gemini-2.0-flash"}, "was shut down on 2026-06-01"),
        ({"model": "gemini-9-flash", "max_dollars": 5}, "generate.prices"),
    ],
)
def test_a_launch_looks_at_keys_model_and_price_before_it_runs_anything(
    tmp_path: Path, catalogue: Path, changes: dict[str, Any], words: str
) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue, generate={"stand_in": None, **changes})
    done = launch(*launch_args(config, tmp_path / "run"), GEMINI_API_KEY="a-key" if changes else "")
    assert done.returncode == 2 and words in output(done), output(done)
    assert not (tmp_path / "run").exists()
