"""A chain of steps in SLURM's queue that looks after itself, so that the user can log out.

Every step's tasks are followed by a *gate*: a small job that starts when they have ended, however they ended, and decides from
the run's own files. Complete: it succeeds, and what waits for it starts. Tasks that were killed: it submits them again, with a
new gate, and lets what waited for the old one wait for the new one. Otherwise it fails, and SLURM cancels the rest.

::

    validate (array) ──afterany──▶ gate-validate ──afterok──▶ generate (array) ──afterany──▶ gate-generate ──▶ ...

The chain's files, each written by one process at a time::

    slurm/chain.json           {"token": "3f2a9c1b", "steps": ["validate", "generate", ...], "at": ..., "profile": {...}}
    slurm/steps/validate.json  a `StepState`: its jobs, its gate, how often it was retried, how it ended
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm.profile import Profile, SlurmError
from slurm.queue import cancel, live_jobs
from slurm.submit import Cluster, StepWork, Submitted

QUEUED, COMPLETE, STOPPED = "queued", "complete", "stopped"
STALE_NOTE_SECONDS = 600.0


@dataclass
class StepState:
    """Where one step of a chain stands."""

    work: StepWork
    jobs: list[Submitted]
    gate: str
    since: float  # when the jobs were submitted
    chain: str  # which submission it belongs to
    retries: int = 0
    state: str = QUEUED
    reasons: dict[str, list[int | None]] = field(default_factory=dict)  # why tasks are not complete: reason → shards
    message: str = ""  # what the user should know and do


class ChainFolder:
    """Owns the names of a chain's files in the run's folder for SLURM."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def token(self) -> str:
        """What marks this run's jobs; made at the first submission, the same ever after."""
        file = self.path / "token"
        try:
            return file.read_text()
        except FileNotFoundError:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(file, uuid.uuid4().hex[:8])
            return file.read_text()

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Keep a second command from submitting the same run in the same seconds.

        Raises:
            SlurmError: another one is at it. A note that a crash left behind is passed over after ten minutes.
        """
        note = self.path / "submitting"
        with suppress(FileNotFoundError):
            if time.time() - note.stat().st_mtime > STALE_NOTE_SECONDS:
                note.unlink()
        try:
            with note.open("x") as file:
                file.write(f"process {os.getpid()} on {platform.node()}")
        except FileExistsError:
            raise SlurmError(
                f"This run is being submitted just now by {note.read_text()}. If that is not so, delete {note}"
            ) from None
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    def write_chain(self, chain: dict[str, Any]) -> None:
        """Record what is about to be submitted."""
        write_text(self.path / "chain.json", json.dumps(chain))

    def chain(self) -> dict[str, Any] | None:
        """The last submission; None if there was none."""
        try:
            data: dict[str, Any] = json.loads((self.path / "chain.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data

    def write_step(self, state: StepState) -> None:
        """Record where a step stands."""
        write_text(self._step_file(state.work.name), json.dumps(asdict(state)))

    def step(self, name: str) -> StepState | None:
        """Where a step stands; None before it was submitted."""
        try:
            data = json.loads(self._step_file(name).read_text())
        except FileNotFoundError:
            return None
        jobs = [Submitted(**job) for job in data.pop("jobs")]
        return StepState(**{**data, "work": StepWork(**data["work"]), "jobs": jobs})

    def _step_file(self, name: str) -> Path:
        return self.path / "steps" / f"{name.replace(':', '-')}.json"


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def submit_chain(folder: ChainFolder, profile: Profile, steps: Sequence[StepWork]) -> list[StepState]:
    """Queue all steps at once.

    Args:
        folder: the run's folder for SLURM.
        profile: the site.
        steps: what is left to do, in order; `after` may name steps that are not among them, which are complete then.

    Raises:
        SlurmError: jobs of this run are queued already, or sbatch refuses; then nothing stays in the queue.
    """
    token = folder.token()
    with folder.submitting():
        return _submit_chain(folder, profile, steps, token)


def _submit_chain(folder: ChainFolder, profile: Profile, steps: Sequence[StepWork], token: str) -> list[StepState]:
    if jobs := live_jobs(token):
        names = Counter(job.step for job in jobs)
        listed = ", ".join(f"{name} ({count})" for name, count in names.items())
        raise SlurmError(
            f"This run is in SLURM's queue already: {listed}. Wait for it, or cancel it: launch.py cancel RUN_DIR"
        )
    cluster = Cluster(profile, folder.path, token)
    chain = uuid.uuid4().hex[:8]
    folder.write_chain(
        {
            "chain": chain,
            "token": token,
            "at": time.time(),
            "steps": [work.name for work in steps],
            "profile": profile.model_dump(mode="json"),
        }
    )
    states: dict[str, StepState] = {}
    try:
        for work in steps:
            gates = [states[name].gate for name in work.after if name in states]
            since = time.time()
            jobs_of_step = cluster.submit(work, work.shards if work.shards is not None else [None], after_gates(gates))
            gate = cluster.submit_gate(work, after_jobs(jobs_of_step, gates))
            states[work.name] = StepState(work, jobs_of_step, gate, since, chain)
            folder.write_step(states[work.name])
    except BaseException:
        with suppress(SlurmError):  # SLURM may be what failed
            cancel(token)
        raise
    return list(states.values())


def after_gates(gates: Sequence[str]) -> str:
    """The dependency of a step's tasks."""
    return f"afterok:{':'.join(gates)}" if gates else ""


def after_jobs(jobs: Sequence[Submitted], gates: Sequence[str]) -> str:
    """The dependency of a gate: its tasks have ended, and were not cancelled because a gate before them failed."""
    ended = f"afterany:{':'.join(job.id for job in jobs)}"
    return f"{ended},{after_gates(gates)}" if gates else ended
