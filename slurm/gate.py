"""The gate after a step: decides from the run's own files how the chain goes on. Runs inside a small SLURM job.

- The step is complete: the gate succeeds, and the steps that wait for it start. The last one of a segment queues the next one.
- Tasks were killed: the gate submits them again with a new gate, makes the waiting steps depend on the new one, and fails.
- Anything else: the gate fails, and SLURM cancels the steps that depend on it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from slurm.chain import (
    Chain,
    ChainFolder,
    StepPhase,
    StepState,
    after_gates,
    after_jobs,
    gates_before,
    submit_segment,
)
from slurm.exits import FailureReason, exit_file, failure_reason, read_exit
from slurm.profile import SlurmError
from slurm.queue import live_jobs, run_command, sacct_states
from slurm.submit import Cluster, SubmissionLimit
from slurm.watch.output import OUT_OF_MEMORY, slurm_error

T = TypeVar("T")

WAIT_FOR_SUBMITTER_SECONDS = 120.0
WAIT_FOR_ROOM_SECONDS = 600.0  # for jobs to leave the queue where the site takes no more of them

ADVICE = {
    FailureReason.failed: "the logs say why",
    FailureReason.out_of_memory: "give the stage more memory in the cluster profile",
    FailureReason.killed: "often out of memory, if the log ends without an error",
    FailureReason.interrupted: "they reached their time limit too often or were cancelled",
}


def run_gate(
    folder: ChainFolder,
    name: str,
    pending: Callable[[], list[int | None]],
    stop_reason: Callable[[], str | None] = lambda: None,
) -> int:
    """Decide how the chain goes on after a step. Runs inside the gate's job.

    Args:
        folder: the run's SLURM folder.
        name: the step.
        pending: the shards that are not complete by the run's files; [None] for a single job, [] for none.
        stop_reason: reason to stop the chain although the step is complete, or None.

    Returns:
        The gate's exit code: 0 lets the next steps start.
    """
    state = folder.step(name)
    assert state is not None, name
    try:
        chain = _wait_for_submission(folder, name)
    except SlurmError as error:
        return _stop(folder, state, str(error))
    state = folder.step(name) or state
    if state.gate != os.environ.get("SLURM_JOB_ID", state.gate):
        # SLURM restarted this gate after it had submitted a retry. It may have been killed before it got to the followers.
        repoint_followers(folder, chain, name)
        print(f"{name}: a newer gate ({state.gate}) decides")
        return 1
    try:
        shards = pending()
        problem = None if shards else stop_reason()
    except Exception as error:  # whatever is wrong with the run's files: tell the user and stop the chain
        traceback.print_exc()
        return _stop(folder, state, f"its results cannot be read ({type(error).__name__}: {error})")
    if not shards and not problem:
        return _complete(folder, chain, state)
    cluster = Cluster(chain.profile, folder.path, chain.token)
    state.reasons = _reasons(folder, state, shards)
    retryable = bool(shards) and all(reason.retryable for reason in state.reasons)
    if not retryable or state.retries >= chain.profile.retries:
        return _stop(folder, state, problem)
    try:
        _with_patience(lambda: _retry(folder, cluster, state, shards))
    except SlurmError as error:
        return _stop(folder, state, f"cannot submit from a compute node ({error})")
    repoint_followers(folder, chain, name)
    listed = ", ".join(f"{len(shards)} {reason}" for reason, shards in state.reasons.items())
    print(f"{name}: {listed}; submitted again ({state.retries} of {chain.profile.retries}), then gate {state.gate}")
    return 1


def _complete(folder: ChainFolder, chain: Chain, state: StepState) -> int:
    """Let the next steps start; queue them first where they are not queued yet."""
    name = state.work.name
    if chain.is_closing(name):
        following = chain.segment_of(name) + 1
        try:
            _with_patience(lambda: submit_segment(folder, chain, following))
        except SlurmError as error:
            steps = ", ".join(work.name for work in chain.segments[following])
            return _stop(folder, state, f"{steps} cannot be queued from a compute node ({error})", complete=True)
    state.phase, state.reasons, state.message = StepPhase.COMPLETE, {}, ""
    folder.write_step(state)
    print(f"{name}: complete")
    states = folder.steps(chain)
    if len(states) == len(chain.steps) and all(one.phase is StepPhase.COMPLETE for one in states):
        _mail(folder, chain)
    return 0


def _with_patience(submit: Callable[[], T]) -> T:
    """Submit; where the site takes no more jobs now, wait for others to leave the queue.

    Raises:
        SlurmError: it is refused for another reason, or for too long.
    """
    deadline = time.monotonic() + WAIT_FOR_ROOM_SECONDS
    while True:
        try:
            return submit()
        except SubmissionLimit as error:
            if time.monotonic() > deadline:
                raise
            print(f"{error} Trying again.", flush=True)
            time.sleep(20)


def _wait_for_submission(folder: ChainFolder, name: str) -> Chain:
    """The chain, once its submitter has queued all of the step's segment: the first tasks may end before that."""
    deadline = time.monotonic() + WAIT_FOR_SUBMITTER_SECONDS
    while True:
        chain = folder.chain()
        assert chain is not None
        recorded = {state.work.name for state in folder.steps(chain)}
        if all(work.name in recorded for work in chain.segments[chain.segment_of(name)]):
            return chain
        if time.monotonic() > deadline:
            raise SlurmError("The submission of this run did not finish: run the same command again.")
        time.sleep(0.5)


def _reasons(
    folder: ChainFolder, state: StepState, shards: Sequence[int | None]
) -> dict[FailureReason, list[int | None]]:
    """Why each shard is not complete."""
    tasks = {shard: (id, part[0]) for job in state.jobs for id, part in job.elements().items() for shard in part}
    accounting = sacct_states(job.id for job in state.jobs) or {}
    reasons: dict[FailureReason, list[int | None]] = {}
    for shard in shards:
        job, first = tasks.get(shard, ("", shard))
        task_exit = read_exit(exit_file(folder.path, state.work.name, first))
        reason = failure_reason(task_exit, state.submitted_at, accounting.get(job))
        if reason is FailureReason.killed and OUT_OF_MEMORY.search(slurm_error(folder.outputs(job))):
            reason = FailureReason.out_of_memory
        reasons.setdefault(reason, []).append(shard)
    return reasons


def _stop(folder: ChainFolder, state: StepState, problem: str | None, *, complete: bool = False) -> int:
    """Stop the chain here: SLURM cancels what depends on this gate."""
    parts = [problem] if problem else []
    for reason, shards in state.reasons.items():
        which = "" if shards == [None] else f" {len(shards)} tasks ({_first(shards)})"
        again = f" after {state.retries} retries" if state.retries else ""
        advice = f": {ADVICE[reason]}" if reason in ADVICE else ""
        parts.append(f"{reason}{which}{again}{advice}")
    state.phase = StepPhase.STOPPED
    state.message = (
        f"{state.work.name} is {'' if complete else 'not '}complete: {'; '.join(parts)}. Logs: {state.work.logs}. "
        "Finished work is kept; the same command again resumes."
    )
    folder.write_step(state)
    print(f"error: {state.message}")
    if (chain := folder.chain()) is not None:
        _mail(folder, chain)
    return 1


def _mail(folder: ChainFolder, chain: Chain) -> None:
    """Have SLURM send its mail about this gate's end, which is that of the run: one mail, whichever gates end it."""
    job, address = os.environ.get("SLURM_JOB_ID"), chain.profile.mail
    if address is None or job is None:
        return
    try:
        (folder.path / f"mail-{chain.submission}").mkdir()
        run_command(["scontrol", "update", f"jobid={job}", f"mailuser={address}", "mailtype=END,FAIL"])
    except FileExistsError:
        return  # another gate did
    except SlurmError as error:
        print(f"no mail to {address}: {error}")


def _first(shards: Sequence[int | None]) -> str:
    return ", ".join(str(shard) for shard in shards[:5]) + (", ..." if len(shards) > 5 else "")


def _retry(folder: ChainFolder, cluster: Cluster, state: StepState, shards: list[int | None]) -> None:
    """Submit the shards again, with a new gate."""
    submitted_at = time.time()
    # Jobs that this gate submitted in an earlier attempt and could not record, because it was killed in between.
    if unrecorded := {j.base for j in live_jobs(cluster.token) if j.step == state.work.name and not j.is_gate}:
        run_command(["scancel", *sorted(unrecorded)])
    # In no more jobs than have ended: where the queue has a limit, there is room for as many.
    jobs = cluster.submit(state.work, shards, elements=sum(len(job.elements()) for job in state.jobs))
    try:
        gate = cluster.submit_gate(state.work, after_jobs(jobs, []))
    except SlurmError:
        run_command(["scancel", *(job.id for job in jobs)])  # without a gate nothing would check their results
        raise
    state.jobs, state.gate, state.submitted_at, state.retries = jobs, gate, submitted_at, state.retries + 1
    folder.write_step(state)


def repoint_followers(folder: ChainFolder, chain: Chain, name: str) -> None:
    """Make the steps after this one depend on the gates that are on record now."""
    states = {state.work.name: state for state in folder.steps(chain)}
    for follower in states.values():
        follows = name in follower.work.after
        if not follows and not (chain.is_closing(follower.work.name) and follower.work.name != name):
            continue
        before, before_gate = (gates_before(chain, states, follower.work, gate=gate) for gate in (False, True))
        changes = {job.id: after_gates(before) for job in follower.jobs} if follows else {}
        changes[follower.gate] = after_jobs(follower.jobs, before_gate)
        for job, dependency in changes.items():
            with suppress(SlurmError):  # SLURM has cancelled it: another step that it depended on failed
                run_command(["scontrol", "update", f"jobid={job}", f"dependency={dependency}"])
