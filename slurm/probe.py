"""Run on a compute node by the doctor: what is there, as one line of JSON.

::

    python -m slurm.probe /shared/runs/a 3f2a9c1b torch transformers
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
import uuid
from pathlib import Path


def probe(folder: Path, word: str, modules: list[str]) -> dict[str, object]:
    """Look at this machine.

    Args:
        folder: what should be on a file system that this machine shares with the one that submits.
        word: the content that the file `probe` in it should have.
        modules: what should be importable.
    """
    found: dict[str, object] = {"node": os.environ.get("SLURMD_NODENAME", platform.node())}
    try:
        found["sees"] = (folder / "probe").read_text() == word
    except OSError:
        found["sees"] = False
    try:
        mine = folder / f"probe.{uuid.uuid4().hex}"
        mine.write_text(word)
        mine.unlink()
        found["writes"] = ""
    except OSError as error:
        found["writes"] = error.strerror or str(error)
    found["imports"] = {name: message for name in modules if (message := import_error(name))}
    found["sbatch"] = shutil.which("sbatch") is not None
    return found


def import_error(name: str) -> str:
    """Why a module cannot be imported; "" where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a library that breaks on import may raise anything
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print("PROBE " + json.dumps(probe(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])), flush=True)
