"""The notebook runs as it is, cell by cell, on a run with an adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, tiny_base
from tests.vqa.models.test_lora import adapted

pytestmark = pytest.mark.xdist_group("torch")
NOTEBOOK = json.loads((ROOT / "docs/tour.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_every_cell_of_the_notebook_runs(tmp_path: Path) -> None:
    adapted(tiny_base(), tmp_path / "run/6_train/blip/adapter")
    (tmp_path / "run/run.json").write_text("{}")
    cells = [cell for cell in CODE if "\n!" not in cell]  # the others are shell commands for Colab
    assert len(cells) == len(CODE) - 1
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)],
        cwd=tmp_path,
        env=environment(RUN=str(tmp_path / "run"), PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "There is no image no-such-file.jpg." in done.stdout
    assert done.stdout.count("How many items are there?") == 1


def test_the_notebook_is_stored_without_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in NOTEBOOK["cells"])
