"""``launch.py fetch``: download the models' weights, on a machine with internet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jobs.config import DEFAULT_CONFIG, load_config


def fetch(config: Path | None, overrides: Sequence[str], out: Console) -> None:
    """Download the weights of every model of a configuration into the cache.

    Raises:
        UserError: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    from vqa.models.base import missing_weights

    for name, model in load_config(config or DEFAULT_CONFIG, overrides).models.items():
        if Path(model.weights).is_dir():
            out.print(f"{name}: {model.weights} is a folder", markup=False)
            continue
        try:
            folder = snapshot_download(model.weights, allow_patterns=["*.json", "*.txt", "*.safetensors"])
            # Older models have their weights in torch's own format only.
            if not any(Path(folder).glob("*.safetensors")):
                folder = snapshot_download(model.weights, allow_patterns=["*.json", "*.txt", "pytorch_model*.bin"])
        except Exception as error:  # the hub's client has dozens of kinds, all with the same way out
            raise missing_weights(model.weights, error) from error
        out.print(f"{name}: {model.weights} is in {folder}", markup=False)
