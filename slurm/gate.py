"""The gate after a step: decides from the run's own files how the chain goes on. Runs inside a small SLURM job.

- The step is complete: the gate succeeds, and the steps that wait for it start.
- Tasks were killed: the gate submits them again with a new gate, makes the waiting steps depend on the new one, and fails.
- Anything else: the gate fails, and SLURM cancels the steps that depend on it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from slurm.chain import Chain, ChainFolder, StepPhase, StepState, after_gates, after_jobs
from slurm.exits import FailureReason, failure_reason, read_exit
from slurm.profile import SlurmError
from slurm.queue import live_jobs, run_command, sacct_states
from slurm.submit import Cluster

WAIT_FOR_SUBMITTER_SECONDS = 120.0

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
        chain = _wait_for_submission(folder)
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
        state.phase, state.reasons, state.message = StepPhase.COMPLETE, {}, ""
        folder.write_step(state)
        print(f"{name}: complete")
        return 0
    cluster = Cluster(chain.profile, folder.path, chain.token)
    state.reasons = _reasons(cluster, state, shards)
    retryable = bool(shards) and all(reason.retryable for reason in state.reasons)
    if not retryable or state.retries >= chain.profile.retries:
        return _stop(folder, state, problem)
    try:
        _retry(folder, cluster, state, shards)
    except SlurmError as error:
        return _stop(folder, state, f"cannot submit from a compute node ({error})")
    repoint_followers(folder, chain, name)
    listed = ", ".join(f"{len(shards)} {reason}" for reason, shards in state.reasons.items())
    print(f"{name}: {listed}; submitted again ({state.retries} of {chain.profile.retries}), then gate {state.gate}")
    return 1


def _wait_for_submission(folder: ChainFolder) -> Chain:
    """The chain, once its submitter has queued all of it: the first tasks may end before that."""
    deadline = time.monotonic() + WAIT_FOR_SUBMITTER_SECONDS
    while True:
        chain = folder.chain()
        assert chain is not None
        if len(folder.steps(chain)) == len(chain.steps):
            return chain
        if time.monotonic() > deadline:
            raise SlurmError("The submission of this run did not finish: run the same command again.")
        time.sleep(0.5)


def _reasons(cluster: Cluster, state: StepState, shards: Sequence[int | None]) -> dict[FailureReason, list[int | None]]:
    """Why each shard is not complete."""
    ids: dict[int | None, str] = {}
    for job in state.jobs:
        for index, shard in enumerate(job.shards):
            ids[shard] = job.id if len(job.shards) == 1 else f"{job.id}_{index}"
    accounting = sacct_states(job.id for job in state.jobs) or {}
    reasons: dict[FailureReason, list[int | None]] = {}
    for shard in shards:
        task_exit = read_exit(cluster.exit_file(state.work.name, shard))
        reason = failure_reason(task_exit, state.submitted_at, accounting.get(ids.get(shard, "")))
        reasons.setdefault(reason, []).append(shard)
    return reasons


def _stop(folder: ChainFolder, state: StepState, problem: str | None) -> int:
    """Stop the chain here: SLURM cancels what depends on this gate."""
    parts = [problem] if problem else []
    for reason, shards in state.reasons.items():
        which = "" if shards == [None] else f" {len(shards)} tasks ({_first(shards)})"
        again = f" after {state.retries} retries" if state.retries else ""
        advice = f": {ADVICE[reason]}" if reason in ADVICE else ""
        parts.append(f"{reason}{which}{again}{advice}")
    state.phase = StepPhase.STOPPED
    state.message = (
        f"{state.work.name} is not complete: {'; '.join(parts)}. Logs: {state.work.logs}. "
        "Finished work is kept; the same command again resumes."
    )
    folder.write_step(state)
    print(f"error: {state.message}")
    return 1


def _first(shards: Sequence[int | None]) -> str:
    return ", ".join(str(shard) for shard in shards[:5]) + (", ..." if len(shards) > 5 else "")


def _retry(folder: ChainFolder, cluster: Cluster, state: StepState, shards: list[int | None]) -> None:
    """Submit the shards again, with a new gate."""
    submitted_at = time.time()
    # Jobs that this gate submitted in an earlier attempt and could not record, because it was killed in between.
    if unrecorded := {j.base for j in live_jobs(cluster.token) if j.step == state.work.name and not j.is_gate}:
        run_command(["scancel", *sorted(unrecorded)])
    jobs = cluster.submit(state.work, shards)
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
        if name not in follower.work.after:
            continue
        before = [states[step] for step in follower.work.after if step in states]
        # SLURM forgets jobs some minutes (MinJobAge) after their end: naming a gate that succeeded would be an error.
        gates = [state.gate for state in before if state.phase is not StepPhase.COMPLETE]
        changes = {job.id: after_gates(gates) for job in follower.jobs}
        changes[follower.gate] = after_jobs(follower.jobs, gates)
        for job, dependency in changes.items():
            with suppress(SlurmError):  # SLURM has cancelled it: another step that it depended on failed
                run_command(["scontrol", "update", f"jobid={job}", f"dependency={dependency}"])
