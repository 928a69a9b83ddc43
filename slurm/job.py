"""What runs inside a SLURM job: one command, its log, and the way back into the queue.

submitit pickles a `CommandJob` at submission and calls it on the node. A pickle names its class and modules, so code that is
edited in between changes queued jobs; therefore it holds only strings, and the work runs in a process of its own. That process
can also finish its current batch when a signal arrives: submitit's handler waits for it here, then requeues the job.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from data_prep.files import write_json
from slurm.exits import TaskExit, oom_kills
from slurm.process import REQUEUE, die_with_parent

SIGNAL_SKEW_SECONDS = 3.0  # within which a signal to a job step reaches all of its processes
REQUEUE_SECONDS = 60.0  # more than SLURM takes to end a process whose job was requeued


class CommandFailed(RuntimeError):
    """The command exited with an error; its log says why."""


@dataclass
class CommandJob:
    """A command that SLURM runs; called by submitit on the node."""

    command: list[str]  # program and arguments; no shell reads them
    log_folder: str  # gets one log per attempt
    exit_file: str  # records how the last attempt exited
    name: str  # first part of the logs' names
    distributed: bool = False  # set torch.distributed's variables: every process of the job runs the same command
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _oom_kills: dict[str, int] = field(default_factory=dict, init=False)  # counted before the command started

    def checkpoint(self) -> DelayedSubmission | None:
        """Called by submitit when USR2 interrupts `__call__`; the command got the same signal.

        Returns:
            What to run when the job starts again; None if the command ended by itself.
        """
        code = self._wait() if self._child else REQUEUE
        if code in (REQUEUE, -signal.SIGUSR2, -signal.SIGTERM):  # by signal: it had not installed its handlers yet
            return DelayedSubmission(replace(self))  # a fresh copy: a running child cannot be pickled
        self._record_exit(code)
        return None

    def __call__(self) -> None:
        """Run the command.

        Raises:
            CommandFailed: it failed, or was killed.
        """
        environment = JobEnvironment()
        log = self._log_file(environment)
        variables = {**os.environ, **(rendezvous(environment) if self.distributed else {})}
        self._oom_kills = oom_kills()
        with log.open("ab") as output:
            attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
            node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
            output.write(f"# SLURM job {environment.job_id}, attempt {attempt}, on {node}\n".encode())
            output.flush()
            self._child = subprocess.Popen(
                die_with_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
            )
        code = self._wait()
        if code == REQUEUE:
            self._requeue_unless_cancelled(environment)
        self._record_exit(code)
        if code:
            raise CommandFailed(f"exit code {code}; see {log}")

    def _log_file(self, environment: JobEnvironment) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S")
        rank = f".rank{environment.global_rank}" if environment.num_tasks > 1 else ""
        path = Path(self.log_folder) / f"{self.name}.{stamp}.job{environment.job_id}{rank}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _wait(self) -> int:
        """Wait for the command without holding a lock.

        `Popen.wait` holds one while it waits. A signal's handler runs in the same thread and waits, too: it would deadlock.
        """
        assert self._child is not None
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return self._child.wait()

    def _requeue_unless_cancelled(self, environment: JobEnvironment) -> None:
        """Requeue a job whose command was asked to stop by something other than USR2, such as TERM; not after scancel.

        After USR2 submitit requeues: the signal reaches this process at nearly the same time, and the handler ends it.
        """
        time.sleep(SIGNAL_SKEW_SECONDS)
        # A job that scancel ends is COMPLETING by now. The job is requeued as a whole, so rank 0 does it for all.
        if environment.global_rank == 0 and job_state(environment.job_id) == "RUNNING":
            environment._requeue(0)
            time.sleep(REQUEUE_SECONDS)

    def _record_exit(self, code: int) -> None:
        if int(os.environ.get("SLURM_PROCID", "0")) == 0:
            # A kill for lack of memory is a SIGKILL like any other; only the cgroup's counter tells it apart.
            out_of_memory = code == -signal.SIGKILL and any(
                count > self._oom_kills.get(counter, 0) for counter, count in oom_kills().items()
            )
            write_json(Path(self.exit_file), TaskExit(code, time.time(), out_of_memory))


def job_state(job_id: str) -> str:
    """A job's state in squeue's words, "" where squeue does not answer."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def rendezvous(environment: JobEnvironment) -> Mapping[str, str]:
    """The variables that torch.distributed reads: where rank 0 listens, and which rank this process is."""
    address = environment.hostnames[0]
    try:
        socket.gethostbyname(address)
    except OSError:  # on some sites a node's name in SLURM is not its host name
        address = os.environ.get("SLURM_SRUN_COMM_HOST") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", address)
    return {
        "MASTER_ADDR": address,
        # All nodes must agree without talking; from the job id, so that two jobs on one node rarely collide.
        "MASTER_PORT": str(20000 + int(environment.raw_job_id) % 20000),
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
    }
