"""What runs inside a SLURM job: one command, its log, and the way back into the queue.

submitit pickles a `CommandJob` when it submits, and calls it on the node. It holds nothing but strings, and runs the work as a
process of its own, so that a change of the code between submission and start cannot break the pickle, and so that the work can
finish what it has in hand when a signal comes: submitit's handler then waits here, and requeues the job.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from jobs.backends.pool import REQUEUE, dying_with_parent
from slurm.ends import memory_kills, write_end

SIGNAL_SECONDS = 3.0  # in which the signal that ended a task must also have reached the process around it


class CommandFailed(RuntimeError):
    """The command did not end well; its log says why."""


class CommandJob:
    """A command to be run by SLURM; called by submitit on the node.

    Args:
        command: program and arguments; no shell reads them.
        log: folder for the log, one file an attempt.
        end: file that says how the last attempt ended.
        name: first part of the log's name.
        distributed: set the variables that torch.distributed needs: every task of the job runs the same command.
    """

    def __init__(self, command: Sequence[str], log: str, end: str, name: str, distributed: bool = False) -> None:
        self.command = list(command)
        self.log = log
        self.end = end
        self.name = name
        self.distributed = distributed
        self._child: subprocess.Popen[bytes] | None = None
        self._signaled = False
        self._memory_kills: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_child": None, "_signaled": False}

    def checkpoint(self) -> DelayedSubmission | None:
        """Called by submitit when USR2 came, in the middle of `__call__`; the command has got the signal, too.

        Returns:
            What to run when the job starts again; None where the command came to its end after all.
        """
        self._signaled = True
        code = self._wait() if self._child else REQUEUE
        if code in (REQUEUE, -signal.SIGUSR2, -signal.SIGTERM):  # the latter two: it did not listen yet
            return DelayedSubmission(CommandJob(self.command, self.log, self.end, self.name, self.distributed))
        self._note_end(code)
        return None

    def __call__(self) -> None:
        """Run the command.

        Raises:
            CommandFailed: it failed, or was killed.
        """
        environment = JobEnvironment()
        rank = environment.global_rank
        stamp = time.strftime("%Y%m%dT%H%M%S")
        suffix = f".rank{rank}" if environment.num_tasks > 1 else ""
        path = Path(self.log) / f"{self.name}.{stamp}.job{environment.job_id}{suffix}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, **(rendezvous(environment) if self.distributed else {})}
        self._memory_kills = memory_kills()
        with path.open("ab") as log:
            attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
            node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
            log.write(f"# SLURM job {environment.job_id}, attempt {attempt}, on {node}\n".encode())
            log.flush()
            self._child = subprocess.Popen(
                dying_with_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
            )
        code = self._wait()
        if code == REQUEUE:
            self._requeue_unless_cancelled(environment)
        self._note_end(code)
        if code:
            raise CommandFailed(f"exit code {code}; see {path}")

    def _wait(self) -> int:
        """Wait for the command without taking a lock, since a signal's handler may wait for it at the same time."""
        assert self._child is not None
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return self._child.wait()

    def _requeue_unless_cancelled(self, environment: JobEnvironment) -> None:
        """Requeue a job whose task was asked to stop by something else than USR2, unless that was scancel."""
        # USR2 comes to the task and to this process at nearly the same time: submitit's handler then ends this one.
        time.sleep(SIGNAL_SECONDS)
        if environment.global_rank == 0 and job_state(environment.job_id) == "RUNNING":
            environment._requeue(0)
            time.sleep(60)  # SLURM ends this process now

    def _note_end(self, code: int) -> None:
        if int(os.environ.get("SLURM_PROCID", "0")) == 0:
            no_memory = code == -signal.SIGKILL and any(
                count > self._memory_kills.get(counter, 0) for counter, count in memory_kills().items()
            )
            write_end(Path(self.end), code, os.environ.get("SLURM_JOB_ID", ""), out_of_memory=no_memory)


def job_state(job_id: str) -> str:
    """One job's state as SLURM says it, "" where it does not say."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def rendezvous(environment: JobEnvironment) -> Mapping[str, str]:
    """What torch.distributed reads: where rank 0 is, and who this process is."""
    address = environment.hostnames[0]
    try:
        socket.gethostbyname(address)
    except OSError:  # SLURM's name of the node is not its name in the network
        address = os.environ.get("SLURM_SRUN_COMM_HOST") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", address)
    return {
        "MASTER_ADDR": address,
        # The same on all nodes, and another one for another job on the same node.
        "MASTER_PORT": str(20000 + int(environment.raw_job_id) % 20000),
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
    }
