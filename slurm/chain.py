"""A chain of steps in SLURM's queue that manages itself, so that the user can log out.

Each step's tasks are followed by a *gate*: a small job that starts when they have all ended, whether they succeeded or not, and
decides from the run's own files how the chain goes on (`slurm.gate`).

::

    validate (array) ──afterany──▶ gate-validate ──afterok──▶ generate (array) ──afterany──▶ gate-generate ──▶ ...

Where a site limits how many jobs may be queued (`max_queued` of the profile), the steps are cut into segments. The last gate of a
segment waits for all gates of it, then queues the next segment.

The chain's files, each with a single writer at any time::

    slurm/token.json           a `Token`: {"token": "abo.3f2a9c1b", "place": {"path": "/runs/abo/slurm", "inode": 1311042}}
    slurm/chain.json           a `Chain`: {"submission": "91ab03c7", "token": "abo.3f2a9c1b", "segments": [[...]], ...}
    slurm/steps/validate.json  a `StepState`: its jobs, its gate, how often it was retried, how it ended
"""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from data_prep.files import Place, read_json, with_folder, without_folder, write_json
from slurm.exits import FailureReason, exit_folder
from slurm.profile import Profile, SlurmError
from slurm.queue import cancel, live_jobs, run_command, submission_limit, unfinished_jobs
from slurm.submit import Cluster, StepWork, SubmissionLimit, SubmittedJob

T = TypeVar("T")


class StepPhase(StrEnum):
    """How far a step of a chain is."""

    QUEUED = "queued"
    COMPLETE = "complete"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Token:
    """What a run's jobs are recognized by, and which folder it was drawn for."""

    token: str  # the run's name and a random word: the suffix of all of the run's job names, also after it was moved
    place: Place  # of the run's SLURM folder


@dataclass(frozen=True)
class Chain:
    """One submission of a run."""

    submission: str  # random; a step state with another one is left over from an earlier submission
    token: str  # the suffix of the run's job names, the same in all submissions
    segments: list[
        list[StepWork]
    ]  # the steps in order; what is queued at one time. One segment where there is no limit
    profile: Profile  # the site; gates submit retries and further segments with it

    @property
    def steps(self) -> list[str]:
        """The names of all steps, in order."""
        return [work.name for segment in self.segments for work in segment]

    def work(self, name: str) -> StepWork:
        """A step by its name."""
        return next(work for segment in self.segments for work in segment if work.name == name)

    def segment_of(self, name: str) -> int:
        """The segment that a step is in."""
        return next(index for index, segment in enumerate(self.segments) if name in {work.name for work in segment})

    def is_closing(self, name: str) -> bool:
        """Whether a step's gate queues the next segment."""
        index = self.segment_of(name)
        return index + 1 < len(self.segments) and self.segments[index][-1].name == name


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
        if (known := self.known_token()) is not None:
            return known
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.path.parent.name)[:40] or "run"
        token = f"{name}.{uuid.uuid4().hex[:8]}"
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._token_file(), Token(token, Place.of(self.path)))
        return token

    def known_token(self) -> str | None:
        """The token; None where none was drawn, or where this folder is a copy of the one that it was drawn for.

        A copy must neither cancel the original's jobs nor take them for its own.
        """
        known = read_json(self._token_file())
        return known["token"] if known is not None and Place(**known["place"]).is_at(self.path) else None

    def mark_cancelled(self) -> None:
        """Say of every step that was queued that it was cancelled."""
        chain = self.chain()
        for state in self.steps(chain) if chain else ():
            if state.phase is StepPhase.QUEUED:
                state.phase, state.message = (
                    StepPhase.STOPPED,
                    "cancelled. The same command again submits what is left.",
                )
                self.write_step(state)

    def owner(self) -> int:
        """The user id of whoever submitted the run."""
        return self._chain_file().stat().st_uid

    def exit_folder(self, step: str) -> Path:
        """Where a step's tasks record how they exited."""
        return exit_folder(self.path, step)

    def outputs(self, job: str) -> list[Path]:
        """What SLURM wrote about a job (12) or an element of an array (12_3), beside the task's own log."""
        return sorted((self.path / "submitit").glob(f"{job}_*_log.out"))

    def is_copy(self) -> bool:
        """Whether this folder is a copy of that of the run which was submitted."""
        return self._token_file().exists() and self.known_token() is None

    def require_empty_queue(self) -> None:
        """Check that no job of this run waits or runs.

        Raises:
            SlurmError: some do, or squeue does not answer; silence does not mean that none is there.
        """
        token, chain = self.known_token(), self.chain()
        if token is None or chain is None:
            return
        states = self.steps(chain)
        if len(states) == len(chain.steps) and all(state.phase is StepPhase.COMPLETE for state in states):
            return
        try:
            jobs = live_jobs(token)
        except SlurmError as error:
            raise SlurmError(
                f"Jobs of this run may be in SLURM's queue, which does not answer ({error}). Launch again where it does. If that "
                f"cluster is gone for good, copy the run (cp -r) and launch the copy."
            ) from error
        if jobs:
            names = Counter(job.step for job in jobs)
            listed = ", ".join(f"{name} ({count})" for name, count in names.items())
            raise SlurmError(
                f"This run is already in SLURM's queue: {listed}. Wait for it, or cancel it: launch.py cancel RUN_DIR"
            )

    def write_chain(self, chain: Chain) -> None:
        """Record what is about to be submitted."""
        self._write(self._chain_file(), chain)

    def forget_chain(self) -> None:
        """Nothing is queued of the last submission, and nothing was done."""
        self._chain_file().unlink()

    def chain(self) -> Chain | None:
        """The last submission; None if there was none."""
        return self._read(self._chain_file(), Chain)

    def write_step(self, state: StepState) -> None:
        """Record where a step stands."""
        self._write(self._step_file(state.work.name), state)

    def forget_step(self, name: str) -> None:
        """Nothing is queued of a step."""
        self._step_file(name).unlink(missing_ok=True)

    def step(self, name: str) -> StepState | None:
        """Where a step stands; None before its first submission."""
        return self._read(self._step_file(name), StepState)

    def steps(self, chain: Chain) -> list[StepState]:
        """Where the chain's steps stand; only of those that were queued."""
        states = [self.step(name) for name in chain.steps]
        return [state for state in states if state is not None and state.submission == chain.submission]

    def _token_file(self) -> Path:
        return self.path / "token.json"

    def _write(self, path: Path, value: object) -> None:
        """Write a file of the chain, in which the paths of the run stay right when it is moved."""
        write_json(path, without_folder(TypeAdapter(type(value)).dump_python(value, mode="json"), self.path.parent))

    def _read(self, path: Path, kind: type[T]) -> T | None:
        tree = read_json(path)
        return None if tree is None else TypeAdapter(kind).validate_python(with_folder(tree, self.path.parent))

    def _chain_file(self) -> Path:
        return self.path / "chain.json"

    def _step_file(self, name: str) -> Path:
        return self.path / "steps" / f"{name.replace(':', '-')}.json"


def submit_chain(folder: ChainFolder, profile: Profile, works: Sequence[StepWork]) -> list[StepState]:
    """Queue all steps at once, or the first segment. The caller sees to it that no other command submits the run meanwhile.

    Args:
        folder: the run's SLURM folder.
        profile: the site.
        works: what is left to do, in order. A step that `after` names and that is not among them is complete.

    Raises:
        SlurmError: jobs of this run are queued already, or sbatch refuses; then nothing stays in the queue.
    """
    folder.require_empty_queue()
    token = folder.token()
    chain = Chain(uuid.uuid4().hex[:8], token, segments(works, profile.max_queued), profile)
    folder.write_chain(chain)
    try:
        return submit_segment(folder, chain, 0)
    except BaseException as error:
        with suppress(SlurmError):  # SLURM may be what failed
            cancel(token)
            folder.forget_chain()
        if isinstance(error, SubmissionLimit):
            raise SlurmError(f"{error} {limit_advice(profile, works)}") from error
        raise


def segments(works: Sequence[StepWork], max_queued: int | None) -> list[list[StepWork]]:
    """Cut the steps into what may be queued at one time: as many as fit, a gate each included.

    One place is left free: the gate that submits is still in the queue itself.
    """
    if max_queued is None:
        return [list(works)]
    cut: list[list[StepWork]] = [[]]
    used, room = 0, max_queued - 1
    for work in works:
        size = min(work.tasks, room - 1) + 1
        if cut[-1] and used + size > room:
            cut.append([])
            used = 0
        cut[-1].append(work)
        used += size
    return cut


def submit_segment(folder: ChainFolder, chain: Chain, index: int) -> list[StepState]:
    """Queue a segment's steps, but for those that an earlier attempt at it has queued and recorded.

    Raises:
        SlurmError: sbatch refuses; then nothing of the segment stays in the queue.
    """
    cluster = Cluster(chain.profile, folder.path, chain.token)
    states = {state.work.name: state for state in folder.steps(chain)}
    names = {work.name for work in chain.segments[index]} - set(states)
    try:
        if index and names:  # a gate that was killed may have left jobs that it could not record
            _cancel_steps(chain.token, names)
        for work in chain.segments[index]:
            if work.name not in names:
                continue
            gates, submitted_at = gates_before(chain, states, work), time.time()
            first = [] if gates else unfinished_jobs(chain.profile.after)
            jobs = cluster.submit(
                work, work.shards if work.shards is not None else [None], after_gates([*gates, *first])
            )
            gate = cluster.submit_gate(work, after_jobs(jobs, [*gates_before(chain, states, work, gate=True), *first]))
            states[work.name] = StepState(work, jobs, gate, submitted_at, chain.submission)
            folder.write_step(states[work.name])
    except BaseException:
        with suppress(SlurmError):
            _cancel_steps(chain.token, names)
        for name in names:
            folder.forget_step(name)
        raise
    return [states[work.name] for work in chain.segments[index]]


def _cancel_steps(token: str, names: Collection[str]) -> None:
    if jobs := {job.base for job in live_jobs(token) if job.step in names}:
        run_command(["scancel", *sorted(jobs, key=int, reverse=True)])


def gates_before(chain: Chain, states: Mapping[str, StepState], work: StepWork, *, gate: bool = False) -> list[str]:
    """The gates that a step's tasks wait for, or its own gate does.

    SLURM forgets jobs some minutes (MinJobAge) after their end: naming a gate that succeeded would be an error.
    """
    names = [name for name in work.after if name in states]
    if gate and chain.is_closing(work.name):
        segment = chain.segments[chain.segment_of(work.name)]
        names += [one.name for one in segment if one.name in states and one.name not in (work.name, *names)]
    return [states[name].gate for name in names if states[name].phase is not StepPhase.COMPLETE]


def after_gates(gates: Sequence[str]) -> str:
    """The dependency of a step's tasks: the gates before them succeeded."""
    return f"afterok:{':'.join(gates)}" if gates else ""


def after_jobs(jobs: Sequence[SubmittedJob], gates: Sequence[str]) -> str:
    """The dependency of a gate: its tasks have ended, in whatever way.

    Tasks that SLURM cancelled because a gate before them failed have ended, too. So the gate also depends on those gates.
    """
    ended = f"afterany:{':'.join(job.id for job in jobs)}"
    return f"{ended},{after_gates(gates)}" if gates else ended


def limit_advice(profile: Profile, works: Sequence[StepWork]) -> str:
    """What to write where a site does not take all of a run's jobs."""
    wanted = sum(work.tasks + 1 for work in works)
    qos = {resources.qos for resources in (profile.defaults, *profile.stages.values())}
    limit, why = submission_limit(sorted(name for name in qos if name))
    if limit is None:
        limit, why = 10, "ask the site for its limit"
    return (
        f"The run has {wanted:,} jobs, more than this site lets you queue. Nothing was queued. Write into the cluster profile: "
        f"max_queued: {limit} ({why}); then tasks do several shards, and gates queue the next stages."
    )
