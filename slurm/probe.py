"""What a compute node finds, as one line of JSON. Run there by the site check; needs nothing but the standard library.

::

    $ python -m slurm.probe /shared/runs/a/slurm 3f2a9c1b torch peft
    PROBE {"node": "n3", "sees_run": true, "write_error": "", "import_errors": {"peft": "..."}, "has_sbatch": true}
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
    sees_run: bool  # it reads in the run directory what the submitting machine wrote there
    write_error: str  # why the run directory cannot be written; "" where it can
    import_errors: dict[str, str]  # by module; without those that can be imported
    has_sbatch: bool


def probe(folder: Path, word: str, modules: list[str]) -> NodeFacts:
    """Look at this machine.

    Args:
        folder: a folder that this machine should share with the one that submits.
        word: the expected content of the file `probe` in it.
        modules: what should be importable.
    """
    try:
        sees_run = (folder / "probe").read_text() == word
    except OSError:
        sees_run = False
    write_error = ""
    try:
        mine = folder / f"probe.{uuid.uuid4().hex}"
        mine.write_text(word)
        mine.unlink()
    except OSError as error:
        write_error = error.strerror or str(error)
    return NodeFacts(
        node=os.environ.get("SLURMD_NODENAME", platform.node()),
        sees_run=sees_run,
        write_error=write_error,
        import_errors={name: message for name in modules if (message := import_error(name))},
        has_sbatch=shutil.which("sbatch") is not None,
    )


def import_error(name: str) -> str:
    """Why a module cannot be imported; "" where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a library that is broken may raise anything on import
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    # The prefix tells this line from what setup lines and modules print.
    print("PROBE " + json.dumps(asdict(probe(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))), flush=True)
