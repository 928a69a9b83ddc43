"""The demo: draws its own catalogue, makes its own base model, then runs the real pipeline on them.

Nothing here is a path of its own: ``jobs/configs/demo.yaml`` is a configuration like any other, and catalogue and base
are what a user brings: a folder in ABO's layout, and one in transformers' format.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from data_prep.demo.catalogue import render
from jobs.config import CONFIGS
from jobs.options import Cluster, LaunchRequest
from jobs.verbs.launch import launch
from jobs.verbs.weights import make_tiny_base

PRODUCTS = 1200
SEED = 7


def run_demo(run_dir: Path, workers: int | None, console: Console) -> int:
    """Make the catalogue and the base where they are not there yet, then run the pipeline; the exit code."""
    run = run_dir.resolve()
    catalogue, base = run.with_name(f"{run.name}-catalogue"), run.with_name(f"{run.name}-base")
    # Two things for two cores: torch gains little by a second one on so small a model.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        rendering = None
        if not (catalogue / "facts.jsonl").is_file():  # written last
            console.print(f"Drawing a catalogue of {PRODUCTS:,} products into {catalogue}", markup=False)
            rendering = pool.submit(render, catalogue, products=PRODUCTS, seed=SEED)
        if not base.is_dir():
            console.print(f"Making a base model in {base}", markup=False)
            make_tiny_base(base, "blip", (), console)
        if rendering is not None:
            rendering.result()
    os.environ |= {"DEMO_CATALOGUE": str(catalogue), "DEMO_BASE": str(base)}
    request = LaunchRequest(Cluster.local, CONFIGS / "demo.yaml", run_dir, workers=workers)
    return launch(request, console)
