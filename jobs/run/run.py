"""A run's own record: its configuration, and one entry a launch with the code, versions and command."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.files import read_json, write_json
from data_prep.outcomes import UserError
from jobs.config import Config, dump_config, validate_config
from jobs.run.layout import RunDir
from jobs.shards.digest import differences, digest

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "google-generativeai", "google-genai", "pillow")


def code_state() -> dict[str, Any]:
    """What code is running: commit and whether it was changed since, a digest of the sources, versions."""

    def git(*arguments: str) -> str | None:
        if not shutil.which("git"):
            return None
        done = subprocess.run(["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    sources = hashlib.sha256()
    for folder in ("data_prep", "jobs", "slurm", "vqa"):
        for file in sorted((PROJECT / folder).rglob("*.py")):
            sources.update(file.relative_to(PROJECT).as_posix().encode() + file.read_bytes())
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(changed) if changed is not None else None,
        "sources": sources.hexdigest()[:12],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def open_run(path: Path, config: Config, command: Sequence[str]) -> tuple[RunDir, list[str]]:
    """Create a run's folder or take it up again; record the configuration, the code and the command.

    Returns:
        The run, and what the user should know about how it differs from its last launch.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    run = RunDir(path.resolve())
    notes: list[str] = []
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        known = read_json(run.run_file)
        foreign = any(not path.name.startswith(".") for path in run.path.iterdir())
        if known is None and foreign and not run.run_file.exists():
            raise UserError(f"{run.path} holds files but no run.json, so it is not a run directory. Name a new folder.")
        launch = {
            "at": time.time(),
            "host": platform.node(),
            "user": os.environ.get("USER", ""),
            "command": list(command),
        }
        launch |= code_state()
        resolved = dump_config(config)
        if known is None:
            known = {"created_at": time.time(), "launches": []}
        else:
            last = known["launches"][-1]
            if last["sources"] != launch["sources"]:
                notes.append(f"resumed with other code than before: {_code(last)} → {_code(launch)}")
            if changed := differences(known["config"], resolved):
                notes.append("configuration changed since the last launch: " + "; ".join(changed))
        known |= {"config": resolved, "fingerprint": digest(resolved)}
        known["launches"].append(launch)
        write_json(run.run_file, known)
    except OSError as error:
        raise UserError(
            f"Cannot write the run directory {run.path}: {error.strerror}. Choose another with --run-dir."
        ) from error
    return run, notes


def _code(launch: dict[str, Any]) -> str:
    commit = (launch["commit"] or "no commit")[:10]
    return f"{commit}{' with changes' if launch['dirty'] else ''} (sources {launch['sources']})"


def load_run(path: Path) -> tuple[RunDir, Config]:
    """A run and its configuration, from its own folder.

    Raises:
        UserError: the folder is no run directory.
    """
    run = RunDir(path.resolve()).require()
    known = read_json(run.run_file)
    if known is None:
        raise UserError(
            f"{run.run_file} is damaged: start the run again with its --config and --run-dir to write it anew."
        )
    return run, validate_config(known["config"], source=str(run.run_file))
