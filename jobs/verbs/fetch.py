"""``launch.py fetch``: download the models' weights, on a machine with internet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jobs.config import DEFAULT_CONFIG, load_config
from jobs.run.contents import download


def fetch(config: Path | None, overrides: Sequence[str], out: Console) -> None:
    """Download the weights of every model of a configuration into the cache.

    Raises:
        UserError: they cannot be had.
    """
    for name, model in load_config(config or DEFAULT_CONFIG, overrides).models.items():
        if Path(model.weights).is_dir():
            out.print(f"{name}: {model.weights} is a folder", markup=False)
        else:
            out.print(f"{name}: {model.weights} is in {download(model.weights)}", markup=False)
