"""Checkpoints that are complete or do not exist.

A kill in the middle of a save leaves a folder that looks like a checkpoint. So each checkpoint gets a manifest, written last, with
the SHA-256 of its files. Training only resumes from a folder that matches its manifest::

    checkpoint-500/complete.json   {"step": 500, "processes": 2, "strategy": "zero2", "files": {"optimizer.pt": "9f86…", …}}
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import file_digest, read_json, write_json
from data_prep.outcomes import UserError
from data_prep.records import from_dict

MANIFEST = "complete.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is, and what its files were when it was saved."""

    step: int
    processes: int
    strategy: str  # ddp, zero1, zero2 or zero3
    files: dict[str, str]  # SHA-256 by path within the folder


def seal(folder: Path, *, step: int, processes: int, strategy: str) -> None:
    """Write the manifest of a checkpoint whose files are all there."""
    files = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    write_json(folder / MANIFEST, Manifest(step, processes, strategy, files))


def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders of a training, complete or not, the newest (by step) first."""
    found = [path for path in out.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(folder.name.rpartition("-")[2])


def _manifest(folder: Path) -> Manifest | None:
    data = read_json(folder / MANIFEST)
    return from_dict(Manifest, data) if data is not None else None


def problem(folder: Path) -> str:
    """Why training cannot resume from a checkpoint; "" if it can."""
    if not (folder / MANIFEST).is_file():
        return "its save was cut off"
    if (manifest := _manifest(folder)) is None:
        return "its manifest is damaged"
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"{name} is not as it was saved"
    return ""


def newest_valid(out: Path, *, processes: int, strategy: str) -> Path | None:
    """The newest checkpoint to resume from, or None. Prints which ones it skipped.

    Raises:
        UserError: it was made with another number of processes or another strategy, which changes the order of the data.
    """
    for folder in checkpoints(out):
        manifest, why = _manifest(folder), problem(folder)
        if why or manifest is None:
            print(f"{folder.name} is skipped: {why}", flush=True)
            continue
        if (manifest.processes, manifest.strategy) != (processes, strategy):
            raise UserError(
                f"{folder} was made by {_processes(manifest.processes)} with {manifest.strategy}; this is "
                f"{_processes(processes)} with {strategy}. Resume with the same, or rename {out} to train from "
                f"the beginning."
            )
        return folder
    return None


def discard_newer(out: Path, than: Path | None) -> None:
    """Delete the checkpoints that were skipped for an older one: `prune` would keep them as the newest."""
    for folder in checkpoints(out):
        if folder == than:
            return
        shutil.rmtree(folder, ignore_errors=True)


def prune(out: Path, keep: int) -> None:
    """Delete all but the newest complete checkpoints, and what killed saves left."""
    complete = [folder for folder in checkpoints(out) if (folder / MANIFEST).is_file()]
    for folder in checkpoints(out):
        if folder not in complete[:keep]:
            shutil.rmtree(folder, ignore_errors=True)


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"
