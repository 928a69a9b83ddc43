"""``run.json``: the configuration of a run as resolved, and one entry a launch.

::

    {"created_at": 1764073423.2, "format": 2, "config": {"data": {"root": "/data/abo"}, ...}, "fingerprint": "5be1c0ffee12",
     "launches": [{"at": 1764073423.2, "host": "login1", "user": "ada", "command": ["launch.py", "--cluster", "slurm"],
                   "commit": "9c7374f…", "dirty": false, "sources": "0d9f2a61a7c3", "python": "3.11.9", "versions": {...},
                   "options": {"cluster": "slurm", "profile": "gpu_site"}}]}
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_prep.files import read_json, with_folder, without_folder, write_json
from data_prep.outcomes import UserError
from data_prep.records import from_dict
from jobs.config import Config, change_keys, dump_config, expand, validate_config
from jobs.run.layout import RunDir
from jobs.shards.digest import differences, digest

FORMAT = 2  # of a run's files; raised when they change: see docs/reliability.md
PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "google-generativeai",
    "google-genai",
    "genai-prices",
    "pillow",
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a run: when, by whom, and with which code."""

    at: float  # Unix time
    host: str
    user: str
    command: list[str]
    commit: str | None  # None outside of a git checkout
    dirty: bool | None  # whether tracked files differ from the commit
    sources: str  # digest of the Python files: the code itself, committed or not
    python: str
    versions: dict[str, str | None]  # of the packages that decide results
    redo: bool = False  # the user agreed to pay again for what changed, and to train again
    options: dict[str, str] = field(default_factory=dict)  # cluster, profile, stages: `resume` uses them again

    def code(self) -> str:
        """Which code ran, for people."""
        commit = (self.commit or "no commit")[:10]
        return f"{commit}{' with changes' if self.dirty else ''} (sources {self.sources})"


@dataclass(slots=True)
class RunRecord:
    """What run.json holds."""

    created_at: float  # Unix time
    format: int
    config: dict[str, Any]  # of the last launch, every default spelled out; paths into the run begin with FOLDER
    fingerprint: str  # of the configuration
    launches: list[Launch] = field(default_factory=list)

    @classmethod
    def read(cls, run: RunDir) -> RunRecord | None:
        """The record of a run; None where there is none, or where it is damaged.

        Raises:
            UserError: another version of this program made it.
        """
        fields = read_json(run.run_file)
        if fields is None:
            return None
        if (found := fields.get("format", 1)) != FORMAT:
            raise UserError(
                f"{run.path} was made by another version of this program (format {found}, this one has {FORMAT}): finish it with "
                f"that version, or name a new --run-dir."
            )
        record = from_dict(cls, fields)
        record.launches = [from_dict(Launch, launch) for launch in fields["launches"]]
        return record


def this_launch(
    command: Sequence[str], *, redo: bool = False, options: Mapping[str, str | None] = MappingProxyType({})
) -> Launch:
    """Describe the launch that is running; ``redo`` and ``options``: see `Launch`."""

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
    return Launch(
        at=time.time(),
        host=platform.node(),
        user=os.environ.get("USER", ""),
        command=list(command),
        commit=git("rev-parse", "HEAD"),
        dirty=bool(changed) if changed is not None else None,
        sources=sources.hexdigest()[:12],
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        redo=redo,
        options={name: value for name, value in options.items() if value},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def open_run(
    path: Path,
    config: Config,
    command: Sequence[str],
    *,
    redo: bool = False,
    options: Mapping[str, str | None] = MappingProxyType({}),
) -> tuple[RunDir, list[str]]:
    """Create a run's folder or resume it; record configuration, code, command, consent and options (see `Launch`).

    Returns:
        The run, and how it differs from its last launch, in sentences.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    run = RunDir(path.resolve())
    notes: list[str] = []
    launch, resolved = this_launch(command, redo=redo, options=options), without_folder(dump_config(config), run.path)
    run.refuse_foreign_folder()
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        record = RunRecord.read(run)
        if record is None:
            record = RunRecord(time.time(), FORMAT, resolved, digest(resolved))
        else:
            last = record.launches[-1]
            if last.sources != launch.sources:
                notes.append(f"resumed with other code than before: {last.code()} → {launch.code()}")
            if changed := differences(record.config, resolved):
                notes.append("configuration changed since the last launch: " + "; ".join(changed))
        record.config, record.fingerprint = resolved, digest(resolved)
        record.launches.append(launch)
        write_json(run.run_file, record)
    except OSError as error:
        raise UserError(
            f"Cannot write the run directory {run.path}: {error.strerror}. Choose another with --run-dir."
        ) from error
    return run, notes


def load_run(path: Path, overrides: Sequence[str] = ()) -> tuple[RunDir, Config]:
    """A run and its configuration, from its own folder; ``overrides`` change keys of it, as for `load_config`.

    Raises:
        UserError: the folder is not a run directory, or an override is wrong.
    """
    run = RunDir(path.resolve()).require()
    record = RunRecord.read(run)
    if record is None:
        raise UserError(
            f"{run.run_file} is damaged: launch the run again with its --config and --run-dir to write it anew."
        )
    tree = with_folder(record.config, run.path)
    change_keys(tree, [expand(text, source="--set") for text in overrides])
    return run, validate_config(tree, source=str(run.run_file))
