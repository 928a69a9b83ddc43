"""A chain of steps in SLURM's queue that manages itself, so that the user can log out.

Each step's tasks are followed by a *gate*: a small job that starts when they have all ended, whether they succeeded or not, and
decides from the run's own files how the chain goes on (`slurm.gate`).

::

    validate (array) ──afterany──▶ gate-validate ──afterok──▶ generate (array) ──afterany──▶ gate-generate ──▶ ...

The chain's files, each with a single writer at any time::

    slurm/token                3f2a9c1b, the suffix of all of the run's job names
    slurm/chain.json           a `Chain`: {"submission": "91ab03c7", "token": "3f2a9c1b", "steps": ["validate", ...], ...}
    slurm/steps/validate.json  a `StepState`: its jobs, its gate, how often it was retried, how it ended
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from data_prep.files import read_json, write_atomic
from slurm.exits import FailureReason
from slurm.profile import Profile, SlurmError
from slurm.queue import cancel, live_jobs
from slurm.submit import Cluster, StepWork, SubmittedJob

STALE_LOCK_SECONDS = 600.0  # far longer than any submission takes

T = TypeVar("T")


class StepPhase(StrEnum):
    """How far a step of a chain is."""

    QUEUED = "queued"
    COMPLETE = "complete"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Chain:
    """One submission of a run."""

    submission: str  # random; a step state with another one is left over from an earlier submission
    token: str  # the suffix of the run's job names, the same in all submissions
    steps: list[str]  # in order
    profile: Profile  # the site; gates submit retries with it


@dataclass
class StepState:
    """Where one step of a chain stands."""

    work: StepWork
    jobs: list[SubmittedJob]
    gate: str  # the gate's job id
    submitted_at: float  # Unix time just before the jobs were submitted
    submission: str  # which `Chain` it belongs to
    retries: int = 0
    phase: StepPhase = StepPhase.QUEUED
    reasons: dict[FailureReason, list[int | None]] = field(default_factory=dict)  # shards that are not complete
    message: str = ""  # what the user should know and do


class ChainFolder:
    """Owns the names of a chain's files in the run's SLURM folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def token(self) -> str:
        """The suffix of this run's job names; drawn at the first submission and then kept."""
        file = self.path / "token"
        if not file.exists():
            write_atomic(file, uuid.uuid4().hex[:8].encode())
        return file.read_text()

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Keep a second command from submitting the same run at the same time.

        Raises:
            SlurmError: another command is submitting. A lock file that a crash left behind is ignored after ten minutes.
        """
        lock = self.path / "submitting"
        with suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > STALE_LOCK_SECONDS:
                lock.unlink()
        try:
            with lock.open("x") as file:
                file.write(f"process {os.getpid()} on {platform.node()}")
        except FileExistsError:
            raise SlurmError(
                f"This run is being submitted by {lock.read_text()}. If that process no longer exists, delete {lock}"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)

    def write_chain(self, chain: Chain) -> None:
        """Record what is about to be submitted."""
        _write(self._chain_file(), chain)

    def chain(self) -> Chain | None:
        """The last submission; None if there was none."""
        return _read(self._chain_file(), Chain)

    def write_step(self, state: StepState) -> None:
        """Record where a step stands."""
        _write(self._step_file(state.work.name), state)

    def step(self, name: str) -> StepState | None:
        """Where a step stands; None before its first submission."""
        return _read(self._step_file(name), StepState)

    def steps(self, chain: Chain) -> list[StepState]:
        """Where the chain's steps stand; while it is being submitted, only those that are queued already."""
        states = [self.step(name) for name in chain.steps]
        return [state for state in states if state is not None and state.submission == chain.submission]

    def _chain_file(self) -> Path:
        return self.path / "chain.json"

    def _step_file(self, name: str) -> Path:
        return self.path / "steps" / f"{name.replace(':', '-')}.json"


def _write(path: Path, value: object) -> None:
    write_atomic(path, TypeAdapter(type(value)).dump_json(value))


def _read(path: Path, kind: type[T]) -> T | None:
    tree = read_json(path)
    return None if tree is None else TypeAdapter(kind).validate_python(tree)


def submit_chain(folder: ChainFolder, profile: Profile, works: Sequence[StepWork]) -> list[StepState]:
    """Queue all steps at once.

    Args:
        folder: the run's SLURM folder.
        profile: the site.
        works: what is left to do, in order. A step that `after` names and that is not among them is complete.

    Raises:
        SlurmError: jobs of this run are queued already, or sbatch refuses; then nothing stays in the queue.
    """
    token = folder.token()
    with folder.submitting():
        if jobs := live_jobs(token):
            names = Counter(job.step for job in jobs)
            listed = ", ".join(f"{name} ({count})" for name, count in names.items())
            raise SlurmError(
                f"This run is already in SLURM's queue: {listed}. Wait for it, or cancel it: launch.py cancel RUN_DIR"
            )
        chain = Chain(uuid.uuid4().hex[:8], token, [work.name for work in works], profile)
        folder.write_chain(chain)
        try:
            return _submit_steps(folder, chain, works)
        except BaseException:
            with suppress(SlurmError):  # SLURM may be what failed
                cancel(token)
            raise


def _submit_steps(folder: ChainFolder, chain: Chain, works: Sequence[StepWork]) -> list[StepState]:
    cluster = Cluster(chain.profile, folder.path, chain.token)
    states: dict[str, StepState] = {}
    for work in works:
        gates = [states[name].gate for name in work.after if name in states]
        submitted_at = time.time()
        jobs = cluster.submit(work, work.shards if work.shards is not None else [None], after_gates(gates))
        gate = cluster.submit_gate(work, after_jobs(jobs, gates))
        states[work.name] = StepState(work, jobs, gate, submitted_at, chain.submission)
        folder.write_step(states[work.name])
    return list(states.values())


def after_gates(gates: Sequence[str]) -> str:
    """The dependency of a step's tasks: the gates before them succeeded."""
    return f"afterok:{':'.join(gates)}" if gates else ""


def after_jobs(jobs: Sequence[SubmittedJob], gates: Sequence[str]) -> str:
    """The dependency of a gate: its tasks have ended, in whatever way.

    Tasks that SLURM cancelled because a gate before them failed have ended, too. So the gate also depends on those gates.
    """
    ended = f"afterany:{':'.join(job.id for job in jobs)}"
    return f"{ended},{after_gates(gates)}" if gates else ended
