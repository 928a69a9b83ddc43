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
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm.cluster import Cluster, StepWork, Submitted
from slurm.ends import Why, read_end, why
from slurm.profile import Profile, SlurmError
from slurm.queue import cancel, ended_states, live_jobs, run_command

QUEUED, COMPLETE, STOPPED = "queued", "complete", "stopped"
WAIT_FOR_SUBMITTER_SECONDS = 120.0
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
        except FileNotFoundError:
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


def run_gate(
    folder: ChainFolder, name: str, pending: Callable[[], list[int | None]], problem_of: Callable[[], str] = str
) -> int:
    """Decide how the chain goes on after a step. Runs inside the gate's job.

    Args:
        folder: the run's folder for SLURM.
        name: the step.
        pending: the shards that the run's files say are not complete; [None] for a single job, [] for none.
        problem_of: says why the run should not go on although all is complete; "" where it should.

    Returns:
        The gate's exit code: 0 lets the next steps start.
    """
    chain = _whole_chain(folder)
    state = folder.step(name)
    assert state is not None, name
    if state.gate != os.environ.get("SLURM_JOB_ID", state.gate):
        # This one was started again after it had submitted the retry; perhaps it was ended before the next line.
        repoint_followers(folder, name)
        print(f"{name}: a newer gate ({state.gate}) decides")
        return 1
    try:
        left = pending()
        problem = "" if left else problem_of()
    except Exception as error:  # whatever the run's files make it stumble over: the user is told, the chain stops
        traceback.print_exc()
        return _stop(folder, state, f"its results cannot be judged ({type(error).__name__}: {error})")
    if not left and not problem:
        state.state, state.reasons, state.message = COMPLETE, {}, ""
        folder.write_step(state)
        print(f"{name}: complete")
        return 0
    profile = Profile.model_validate(chain["profile"])
    cluster = Cluster(profile, folder.path, chain["token"])
    state.reasons = _reasons(cluster, state, left)
    helps = bool(left) and all(Why(reason).worth_retrying for reason in state.reasons)
    if problem or not helps or state.retries >= profile.retries:
        return _stop(folder, state, problem)
    try:
        _retry(folder, cluster, state, left)
    except SlurmError as error:
        return _stop(folder, state, f"cannot submit from a compute node ({error})")
    listed = ", ".join(f"{len(shards)} {reason}" for reason, shards in state.reasons.items())
    print(f"{name}: {listed}; submitted again ({state.retries} of {profile.retries}), then gate {state.gate}")
    return 1


def _whole_chain(folder: ChainFolder) -> dict[str, Any]:
    """The chain, once its submitter has queued all of it."""
    deadline = time.monotonic() + WAIT_FOR_SUBMITTER_SECONDS
    while True:
        chain = folder.chain()
        assert chain is not None
        states = [folder.step(name) for name in chain["steps"]]
        if all(state is not None and state.chain == chain["chain"] for state in states):
            return chain
        if time.monotonic() > deadline:
            raise SlurmError("The submission of this run was broken off: run the same command again.")
        time.sleep(0.5)


def _reasons(cluster: Cluster, state: StepState, left: Sequence[int | None]) -> dict[str, list[int | None]]:
    """Why each task's work is not complete."""
    accounting = ended_states(job.id for job in state.jobs) or {}
    ids: dict[int | None, str] = {}
    for job in state.jobs:
        for index, shard in enumerate(job.shards):
            ids[shard] = job.id if len(job.shards) == 1 else f"{job.id}_{index}"
    reasons: dict[str, list[int | None]] = {}
    for shard in left:
        said = {accounting[ids[shard]]} if ids.get(shard) in accounting else set()
        reason = why(read_end(cluster.end_file(state.work.name, shard)), state.since, said)
        reasons.setdefault(str(reason), []).append(shard)
    return reasons


def _stop(folder: ChainFolder, state: StepState, problem: str) -> int:
    """End the chain here: SLURM cancels what depends on this gate."""
    advice = {
        Why.failed: "the logs say why",
        Why.out_of_memory: "give the stage more memory in the cluster profile",
        Why.killed: "often for want of memory, where the log ends without an error",
        Why.interrupted: "they reached their time limit too often or were cancelled",
    }
    parts = [problem] if problem else []
    for reason, shards in state.reasons.items():
        which = "" if shards == [None] else f" {len(shards)} tasks ({_first(shards)})"
        again = f" after {state.retries} retries" if state.retries else ""
        hint = advice.get(Why(reason))
        parts.append(f"{reason}{which}{again}" + (f": {hint}" if hint else ""))
    state.state = STOPPED
    state.message = (
        f"{state.work.name} is not complete: {'; '.join(parts)}. Logs: {state.work.logs}. "
        "What was done is kept; the same command again goes on from there."
    )
    folder.write_step(state)
    print(f"error: {state.message}")
    return 1


def _first(shards: Sequence[int | None]) -> str:
    return ", ".join(str(shard) for shard in shards[:5]) + (", ..." if len(shards) > 5 else "")


def _retry(folder: ChainFolder, cluster: Cluster, state: StepState, left: list[int | None]) -> None:
    """Submit what is left, and let what waits for this gate wait for the new one."""
    since = time.time()
    jobs = cluster.submit(state.work, left)
    try:
        gate = cluster.submit_gate(state.work, after_jobs(jobs, []))
    except SlurmError:
        run_command(["scancel", *(job.id for job in jobs)])  # nobody would look at their results
        raise
    state.jobs, state.gate, state.since, state.retries = jobs, gate, since, state.retries + 1
    folder.write_step(state)
    repoint_followers(folder, state.work.name)


def repoint_followers(folder: ChainFolder, name: str) -> None:
    """Make the steps after this one wait for the gates that are on record now."""
    chain = folder.chain()
    assert chain is not None
    states = {step: folder.step(step) for step in chain["steps"]}
    for follower in states.values():
        assert follower is not None
        if name not in follower.work.after:
            continue
        before = [states[step] for step in follower.work.after if step in states]
        # A gate that has succeeded may be forgotten by SLURM already: it must not be named again.
        gates = [one.gate for one in before if one is not None and one.state != COMPLETE]
        for job in follower.jobs:
            run_command(["scontrol", "update", f"jobid={job.id}", f"dependency={after_gates(gates)}"])
        run_command(["scontrol", "update", f"jobid={follower.gate}", f"dependency={after_jobs(follower.jobs, gates)}"])
