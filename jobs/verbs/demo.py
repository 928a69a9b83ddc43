"""The demo: renders its own catalogue, then runs the real pipeline on it.

Nothing here is a path of its own: ``jobs/configs/demo.yaml`` is a configuration like any other, and the catalogue is what a user
brings, a folder in ABO's layout.
"""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from data_prep.demo.catalogue import render
from jobs.config import CONFIGS
from jobs.options import Cluster, LaunchRequest
from jobs.verbs.launch import launch

PRODUCTS = 1200
SEED = 7


def run_demo(run_dir: Path, workers: int | None, console: Console) -> int:
    """Render the catalogue where it is not there yet, then run the pipeline; the exit code."""
    catalogue = run_dir.resolve().with_name(f"{run_dir.name}-catalogue")
    if not (catalogue / "facts.jsonl").is_file():  # written last
        console.print(f"Rendering a catalogue of {PRODUCTS} products into {catalogue}", markup=False)
        render(catalogue, products=PRODUCTS, seed=SEED)
    os.environ["DEMO_CATALOGUE"] = str(catalogue)
    request = LaunchRequest(Cluster.local, CONFIGS / "demo.yaml", run_dir, workers=workers)
    return launch(request, console)
