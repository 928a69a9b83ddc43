"""Splits of so few products that one of them is empty."""

from __future__ import annotations

from pathlib import Path

from data_prep.demo.catalogue import render
from tests.conftest import launch, launch_args, output, write_config


def test_a_split_that_is_empty_is_said_with_what_to_do(tmp_path: Path) -> None:
    render(tmp_path / "catalogue", products=4, seed=3)
    config = write_config(tmp_path / "config.yaml", tmp_path / "catalogue")
    command = launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate,curate")
    refused = launch(*command, "--set", "curate.seed=3")  # all four products fall into train
    said = " ".join(output(refused).split())
    assert refused.returncode == 1
    assert "20 training and 0 test questions" in said and "a hash of curate.seed and the image id" in said
    assert "Use more products, or another seed (--set curate.seed=4)" in said
    done = launch(*command, "--set", "curate.seed=0")  # two fall into test, none into val
    assert done.returncode == 0, output(done)
    logs = "".join(path.read_text() for path in (tmp_path / "run/logs/curate").iterdir())
    assert "No product is in val, so training keeps its last adapter" in logs
