"""What a compute node finds, as one line of JSON. Run there by the site check; needs nothing but the standard library.

::

    $ python -m slurm.probe '{"word": "3f2a9c1b", "folders": ["/shared/runs/a/slurm"], "modules": ["torch", "peft"]}'
    PROBE {"node": "n3", "sees": [true], "write_errors": [""], "import_errors": {"peft": "..."}, "has_sbatch": true}
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a compute node finds."""

    node: str
    sees: list[bool]  # for each folder: it reads there what the submitting machine wrote
    write_errors: list[str]  # for each folder: why it cannot be written; "" where it can
    import_errors: dict[str, str]  # by module; without those that can be imported
    has_sbatch: bool


def probe(word: str, folders: list[str], modules: list[str]) -> NodeFacts:
    """Look at this machine.

    Args:
        word: names the file that the submitting machine wrote into each folder.
        folders: those that this machine should share with it.
        modules: what should be importable.
    """
    return NodeFacts(
        node=os.environ.get("SLURMD_NODENAME", platform.node()),
        sees=[(Path(folder) / f"probe.{word}").is_file() for folder in folders],
        write_errors=[write_error(Path(folder)) for folder in folders],
        import_errors={name: message for name in modules if (message := import_error(name))},
        has_sbatch=shutil.which("sbatch") is not None,
    )


def write_error(folder: Path) -> str:
    """Why nothing can be written into a folder; "" where it can."""
    try:
        mine = folder / f"probe.{uuid.uuid4().hex}"
        mine.write_text("")
        mine.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def import_error(name: str) -> str:
    """Why a module cannot be imported; "" where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a library that is broken may raise anything on import
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    # The prefix tells this line from what setup lines and modules print.
    print("PROBE " + json.dumps(asdict(probe(**json.loads(sys.argv[1])))), flush=True)
