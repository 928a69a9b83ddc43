"""Checkpoints that are complete or do not exist.

A kill in the middle of a save leaves a folder that looks like a checkpoint. So each one gets a manifest, written last, with the
SHA-256 of its files; only a folder that still matches its manifest is ever resumed from::

    checkpoint-500/complete.json   {"step": 500, "processes": 2, "strategy": "zero2", "files": {"optimizer.pt": "9f86…", …}}
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from data_prep.files import write_json
from data_prep.outcomes import UserError

MANIFEST = "complete.json"


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest of a checkpoint whose files are all there.

    Args:
        folder: the checkpoint.
        facts: what a resumption must know: step, processes, strategy.
    """
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    write_json(folder / MANIFEST, {**facts, "files": files})


def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders of a training, whole or not, newest (by step) first."""
    found = [path for path in out.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(folder.name.rpartition("-")[2])


def problem(folder: Path) -> str:
    """Why a checkpoint cannot be resumed from; "" where it can."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "its save was cut off"
    except ValueError:
        return "its manifest is damaged"
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != known:
            return f"{name} is not as it was saved"
    return ""


def newest_valid(out: Path, *, processes: int, strategy: str) -> Path | None:
    """The newest checkpoint that can be resumed from; None to begin anew. Says which ones it passed over.

    Raises:
        UserError: it was made by another number of processes or another strategy, which would change the order of the data.
    """
    for folder in checkpoints(out):
        if why := problem(folder):
            print(f"{folder.name} is not resumed from: {why}", flush=True)
            continue
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made = (manifest["processes"], manifest["strategy"])
        if made != (processes, strategy):
            raise UserError(
                f"{folder} was made by {_processes(made[0])} with {made[1]}; now it is {_processes(processes)} with "
                f"{strategy}. Resume with the same, or delete {out}/checkpoint-* to train from the beginning."
            )
        return folder
    return None


def discard_newer(out: Path, than: Path | None) -> None:
    """Delete the checkpoints that were passed over for an older one: `prune` would take them for the newest."""
    for folder in checkpoints(out):
        if folder == than:
            return
        shutil.rmtree(folder, ignore_errors=True)


def prune(out: Path, keep: int) -> None:
    """Delete all but the newest whole checkpoints, and those that a kill left behind."""
    whole = [folder for folder in checkpoints(out) if (folder / MANIFEST).is_file()]
    for folder in checkpoints(out):
        if folder not in whole[:keep]:
            shutil.rmtree(folder, ignore_errors=True)


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
