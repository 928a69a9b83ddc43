"""One verdict a step, from what should be there (the chain), what SLURM says (squeue, sacct) and the run's own files.

::

    for step, found in reconcile(folder).verdicts.items():
        print(step, found.verdict, found.why, found.advice)  # validate held "launch failed requeued held" (job 12_3) ...
"""

from __future__ import annotations

import os
import pwd
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from slurm.chain import Chain, ChainFolder, StepPhase, StepState
from slurm.exits import FailureReason, failure_reason, read_exit
from slurm.profile import SlurmError
from slurm.queue import QueuedJob, live_jobs, sacct_states
from slurm.watch.output import slurm_error


class Verdict(StrEnum):
    """How a step of a submitted run is."""

    COMPLETE = "complete"
    RUNNING = "running"
    QUEUED = "queued"  # behind steps that are not complete
    WAITING = "waiting"  # for SLURM to start it
    HELD = "held"  # and stays so until somebody releases it
    STOPPED = "stopped"  # the chain ended here
    NOT_STARTED = "not started"  # the chain ended before it
    VANISHED = "vanished"  # should be in the queue, is not, and no gate said why
    SILENT = "SLURM silent"


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """What is known of one step; ``why`` and ``advice`` are phrases for people, "" where there is nothing to say."""

    verdict: Verdict
    why: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at SLURM and at a run's files found."""

    jobs: list[QueuedJob] | None  # None: squeue does not answer, or may hide another user's jobs
    verdicts: dict[str, StepVerdict]  # in the chain's order


SAME_COMMAND = "The same command again submits what is left."
# Reasons of squeue for which a job waits, in words, and what the user can do about it.
REASONS = {
    "Resources": ("no node with what it asks for is free", ""),
    "Priority": ("jobs of a higher priority are first", ""),
    "BeginTime": ("SLURM pauses before it starts a requeued job again", ""),
    "JobArrayTaskLimit": ("`parallel` of the profile allows no more tasks at once", ""),
    "PartitionTimeLimit": ("its time limit is longer than the partition's", "Shorten `time` in the profile."),
    "PartitionNodeLimit": ("it asks for more nodes than the partition allows", "Lower `nodes` in the profile."),
    "PartitionDown": ("its partition is down", "`sinfo` shows when it is up again."),
    "PartitionInactive": ("its partition is inactive", "`sinfo` shows when it is active again."),
    "BadConstraints": ("no node can have what it asks for", "Change the stage's resources in the profile."),
    "NodeDown": ("a node that it needs is down", "`sinfo` shows which."),
    "InvalidAccount": ("its account is not valid", "Change `account` in the profile."),
    "InvalidQOS": ("its QOS is not valid", "Change `qos` in the profile."),
    "AccountNotAllowed": ("its account may not use the partition", "Change `account` or `partition` in the profile."),
    "QOSNotAllowed": ("its QOS may not be used there", "Change `qos` or `partition` in the profile."),
    "Licenses": ("a license that it asks for is in use", ""),
    "Reservation": ("its reservation has not begun", ""),
    "DependencyNeverSatisfied": ("the job that it waits for did not succeed", SAME_COMMAND),
}
ENDED = ("STOPPED", "VANISHED", "NOT_STARTED")
NEVER_BEGUN = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED", "SUSPENDED")


def reconcile(folder: ChainFolder) -> Look:
    """Look once at SLURM and at the run's files; no verdicts for a run that was not submitted, or for a copy of one."""
    token, chain = folder.known_token(), folder.chain()
    if token is None or chain is None:
        return Look(None, {})
    silence, jobs = "", list[QueuedJob]()
    owner = folder.owner()
    try:
        jobs = live_jobs(token, owner)
    except SlurmError as error:
        silence = f"squeue does not answer ({' '.join(str(error).split())})"
    else:
        if not jobs and owner != os.getuid():
            silence = f"these are jobs of {_user(owner)}, which SLURM may hide from other users"
    # The files after the queue: whatever a job that is gone had to write is there.
    reader = _Reader(folder, chain, {state.work.name: state for state in folder.steps(chain)}, jobs, silence)
    verdicts: dict[str, StepVerdict] = {}
    for name in chain.steps:
        verdicts[name] = reader.verdict(name, verdicts)
    return Look(None if silence else jobs, verdicts)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What there is to judge from."""

    folder: ChainFolder
    chain: Chain
    states: Mapping[str, StepState]
    jobs: Sequence[QueuedJob]
    silence: str  # why nothing is known of the queue; "" where it is

    def verdict(self, name: str, before: Mapping[str, StepVerdict]) -> StepVerdict:
        """The verdict of a step; ``before`` has those of all steps before it."""
        state = self.states.get(name)
        if state is not None and state.phase is StepPhase.COMPLETE:
            return StepVerdict(Verdict.COMPLETE)
        if state is not None and state.phase is StepPhase.STOPPED:
            return StepVerdict(Verdict.STOPPED, state.message)
        mine = [job for job in self.jobs if job.step == name]
        after = self.chain.work(name).after
        if not mine and any(before[one].verdict.name in ENDED for one in after if one in before):
            return StepVerdict(Verdict.NOT_STARTED)
        if self.silence:
            return StepVerdict(Verdict.SILENT, self.silence, self._sign_of_life())
        if tasks := [job for job in mine if not job.is_gate]:
            return self._in_queue(tasks, state, mine)
        if mine:
            return self._at_gate(mine)
        if state is None:
            if any(before[one].verdict is not Verdict.COMPLETE for one in after if one in before):
                return StepVerdict(Verdict.QUEUED)
            return StepVerdict(Verdict.VANISHED, "its submission did not come to its end", SAME_COMMAND)
        return self._vanished(state)

    def _in_queue(self, tasks: Sequence[QueuedJob], state: StepState | None, mine: Sequence[QueuedJob]) -> StepVerdict:
        """The verdict of a step with tasks that wait or run."""
        count = f"of {len(tasks)} tasks " if len(tasks) > 1 else ""
        advice = ""
        if state is not None and state.gate not in {job.id for job in mine}:
            advice = f"Its gate (job {state.gate}) is gone, so the chain ends here. {SAME_COMMAND}"
        if held := [job for job in tasks if job.is_held]:
            return _held(held, count)
        waiting = [job for job in tasks if job.state in NEVER_BEGUN]
        if len(waiting) < len(tasks):
            why = f"{failed} tasks failed so far" if state and (failed := self._failed(state)) else ""
            return StepVerdict(Verdict.RUNNING, why, advice)
        reasons = Counter(job.reason if job.state == "PENDING" else job.state.lower() for job in waiting)
        reason = reasons.most_common(1)[0][0]
        if reason == "Dependency":
            return StepVerdict(Verdict.QUEUED, advice=advice)
        why, do = in_words(reason)
        return StepVerdict(Verdict.WAITING, f"{why} ({reason})", " ".join(filter(None, (do, advice))))

    def _at_gate(self, gates: Sequence[QueuedJob]) -> StepVerdict:
        """The verdict of a step of which only the gate is left."""
        if held := [job for job in gates if job.is_held]:
            return _held(held, "of its gate: ")
        if all(job.state in NEVER_BEGUN for job in gates):
            why, advice = in_words(gates[0].reason)
            return StepVerdict(Verdict.WAITING, f"its tasks have ended; of its gate: {why} ({gates[0].reason})", advice)
        return StepVerdict(Verdict.RUNNING, "its tasks have ended; its gate looks at the results")

    def _vanished(self, state: StepState) -> StepVerdict:
        """The verdict of a step that no gate closed, though nothing of it is in the queue."""
        ids = [job.id for job in state.jobs]
        jobs = f"neither its tasks (job {', '.join(ids)}) nor its gate (job {state.gate}) are in the queue"
        ended = sacct_states([*ids, state.gate])
        if not ended:
            return StepVerdict(Verdict.VANISHED, f"{jobs}: cancelled, or lost by SLURM", SAME_COMMAND)
        gate = ended.pop(state.gate, "nothing")
        counts = Counter(ended.values())
        tasks = ", ".join(f"{count} {word}" for word, count in counts.most_common()) or "nothing"
        why = f"{jobs}; sacct says of its tasks: {tasks}; of its gate: {gate}"
        said = slurm_error(self.folder.outputs(state.gate))
        return StepVerdict(Verdict.VANISHED, f"{why}{f' ({said})' if said else ''}", SAME_COMMAND)

    def _failed(self, state: StepState) -> int:
        """How many tasks of a step that still runs have ended with an error of their own."""
        exits = (read_exit(path) for path in self.folder.exit_folder(state.work.name).glob("*.json"))
        recent = (one for one in exits if one is not None and one.at >= state.submitted_at)
        return sum(failure_reason(one, state.submitted_at, None) is FailureReason.failed for one in recent)

    def _sign_of_life(self) -> str:
        """When a task last wrote into its log."""
        folders = [Path(state.work.logs) for state in self.states.values()]
        times = [path.stat().st_mtime for folder in folders for path in folder.glob("*.log")]
        if not times:
            return ""
        return f"The newest log was written {max(0.0, time.time() - max(times)) / 60:.0f} min ago."


def _held(held: Sequence[QueuedJob], count: str) -> StepVerdict:
    ids = ", ".join(job.id for job in held[:3]) + (", ..." if len(held) > 3 else "")
    reasons = ", ".join(dict.fromkeys(job.reason for job in held))
    by_node = any("launch failed" in job.reason for job in held)
    cause = "A node could not start it: ask the site's administrators. " if by_node else ""
    number = f"{len(held)} {count}" if count.startswith("of ") and count.endswith("tasks ") else count
    advice = f"{cause}Then: scontrol release {' '.join(job.id for job in held[:3])}"
    return StepVerdict(Verdict.HELD, f'{number}"{reasons}" (job {ids})', advice)


def in_words(reason: str) -> tuple[str, str]:
    """Why a job waits, and what the user can do about it, from squeue's reason."""
    if reason in REASONS:
        return REASONS[reason]
    if reason.startswith("ReqNodeNotAvail"):
        return "nodes that it needs are reserved or down", "`sinfo` shows until when."
    if reason.startswith(("QOS", "Assoc")):
        return "a limit of the QOS or the account is reached", "It starts when others of your jobs have ended."
    return "SLURM has not said more", ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
