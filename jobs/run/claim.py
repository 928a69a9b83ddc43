"""One launch of a run at a time: a local launch leaves a note of its process in the run's folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import read_json, write_json
from jobs.run.layout import RunDir


@dataclass(frozen=True, slots=True)
class Launcher:
    """A process that drives a run."""

    host: str
    pid: int
    started: str | None  # when it started, in clock ticks since boot: a reused process id has another


@contextmanager
def announced(run: RunDir) -> Iterator[None]:
    """Leave the note while the block runs."""
    write_json(run.launcher_file, Launcher(platform.node(), os.getpid(), process_started(os.getpid())))
    try:
        yield
    finally:
        run.launcher_file.unlink(missing_ok=True)


def living_launcher(run: RunDir) -> Launcher | None:
    """The other process on this machine that drives the run, if it lives."""
    known = read_json(run.launcher_file)
    launcher = Launcher(**known) if known else None
    if launcher is None or launcher.host != platform.node() or launcher.pid == os.getpid():
        return None
    return launcher if process_started(launcher.pid) == launcher.started else None


def process_started(pid: int) -> str | None:
    """The start time of a living process; None for one that is gone or a zombie."""
    try:
        # The command's name stands in parentheses and may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
