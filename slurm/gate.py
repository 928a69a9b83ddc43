"""The gate after a step: decides from the run's own files how the chain goes on. Runs inside a small SLURM job.

Complete: it succeeds, and what waits for it starts. Tasks that were killed: it submits them again, with a new gate, and lets what
waited for the old one wait for the new one. Otherwise it fails, and SLURM cancels the rest.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from slurm.chain import COMPLETE, STOPPED, ChainFolder, StepState, after_gates, after_jobs
from slurm.ends import Why, read_end, why
from slurm.profile import Profile, SlurmError
from slurm.queue import ended_states, live_jobs, run_command
from slurm.submit import Cluster

WAIT_FOR_SUBMITTER_SECONDS = 120.0


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
    state = folder.step(name)
    assert state is not None, name
    try:
        chain = _whole_chain(folder)
    except SlurmError as error:
        return _stop(folder, state, str(error))
    state = folder.step(name) or state
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
    # Those of this gate's earlier start, if it was ended between submitting them and writing them down.
    if forgotten := {j.base for j in live_jobs(cluster.token) if j.step == state.work.name and not j.is_gate}:
        run_command(["scancel", *sorted(forgotten)])
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
        changes = {job.id: after_gates(gates) for job in follower.jobs}
        changes[follower.gate] = after_jobs(follower.jobs, gates)
        for job, dependency in changes.items():
            with suppress(SlurmError):  # it has ended: another step that it waited for has failed
                run_command(["scontrol", "update", f"jobid={job}", f"dependency={dependency}"])
