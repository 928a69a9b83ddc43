"""Starts and stops a real SLURM on one machine: four virtual nodes with two fake GPUs each, three partitions.

::

    with SlurmCluster(Path("/tmp/tc")) as cluster:
        subprocess.run(["sbatch", "--wrap", "hostname"], env=cluster.env)

`cpu` is the default partition, jobs in `preempt` are requeued when `high` needs their CPUs, and all waiting times are shorter
than on a real site. Needs root and the Debian packages that tests/install_system_packages.sh installs. All files, keys and
sockets are in the cluster's folder and all ports are free ones, so that several clusters can run side by side.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

DAEMONS = ("munged", "slurmctld", "slurmd")
ACCOUNTING = ("slurmdbd", "mariadbd")
NODES = ("n1", "n2", "n3", "n4")
CPUS = 4  # per node; fake: SLURM does not check how many there are
SQL = Path("/usr/share/mysql")


def missing(accounting: bool = True) -> str:
    """Why the cluster cannot be started here; "" where it can."""
    wanted = DAEMONS + (ACCOUNTING if accounting else ()) + ("sbatch",)
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in wanted if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed: run tests/install_system_packages.sh as root"
    return "" if os.geteuid() == 0 else "the SLURM daemons of the tests must be started as root"


class SlurmCluster:
    """The daemons of one cluster.

    Args:
        folder: for all of its files; a short path, because the path of a socket may have at most 107 bytes.
        accounting: start slurmdbd and a database, so that sacct works.
        max_array_size: SLURM's MaxArraySize: the largest array index plus one.
    """

    def __init__(self, folder: Path, *, accounting: bool = True, max_array_size: int = 1001) -> None:
        self.folder = folder.resolve()
        self.accounting = accounting
        self.max_array_size = max_array_size
        self.conf = self.folder / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.env["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

    def __enter__(self) -> SlurmCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons and wait until every node is idle.

        Raises:
            RuntimeError: a daemon does not start; with the end of its log.
        """
        for name in ("state", "munge", "db", "log", "run", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o755)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = free_ports(len(NODES) + 3)
        try:
            self._write_conf()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            for node in NODES:
                self.start_node(node)
            self._wait("slurmctld", lambda: self.node_states() == dict.fromkeys(NODES, "idle"))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every process of this cluster, jobs included."""
        # The daemons first: they would start jobs again.
        for pids in (self._pids("slurmctld"), self._pids("slurmd"), self._all_pids()):
            for pid in pids:
                kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self._all_pids() and time.monotonic() < deadline:
            time.sleep(0.05)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", self.conf])
        self._wait("slurmctld", lambda: self.run("scontrol", "ping", check=False).count(" is UP") == 1)

    def start_node(self, node: str) -> None:
        """Start one node's slurmd."""
        self._spawn(f"slurmd.{node}", ["slurmd", "-D", "-N", node, "-f", self.conf])

    def kill_node(self, node: str) -> None:
        """Kill the node's daemon. Its jobs keep running, as on a node that only lost its network."""
        for pid in self._pids("slurmd"):
            if node in cmdline(pid):
                kill(pid, signal.SIGKILL)

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands on this cluster; its output."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """State of each node in sinfo's words."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).split("\n")
        return dict(line.split(maxsplit=1) for line in lines if line.strip())

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until the cluster is empty."""
        self.run("scancel", "--user=root", check=False)
        self._wait("slurmctld", lambda: not self.run("squeue", "--noheader").strip())
        self._wait("slurmctld", lambda: self.node_states() == dict.fromkeys(NODES, "idle"))

    def _start_munge(self) -> None:
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        sock, log, pid, seed = (self.folder / "munge" / name for name in ("socket", "log", "pid", "seed"))
        files = [
            f"--key-file={key}",
            f"--socket={sock}",
            f"--log-file={log}",
            f"--pid-file={pid}",
            f"--seed-file={seed}",
        ]
        self._spawn("munged", ["munged", "--foreground", "--force", *files])
        self._wait("munged", sock.exists)

    def _start_accounting(self) -> None:
        data, port = self.folder / "db", self._ports[1]
        if not (data / "mysql").is_dir():
            # --bootstrap reads one statement per line.
            statements = ["create database mysql;", "use mysql;"]
            for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql"):
                statements.append((SQL / name).read_text())
            subprocess.run(
                ["/usr/sbin/mariadbd", "--no-defaults", "--bootstrap", "--user=root", f"--datadir={data}"],
                input="\n".join(statements), text=True, capture_output=True, env=self.env, check=False,
            )  # fmt: skip
        options = [f"--datadir={data}", f"--port={port}", f"--socket={self.folder}/run/db.sock", "--user=root"]
        options += [
            "--bind-address=127.0.0.1",
            "--skip-grant-tables",
            "--skip-networking=0",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        self._spawn("mariadbd", ["mariadbd", "--no-defaults", *options])
        self._wait("mariadbd", lambda: listens(port))
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(
            f"""AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self._ports[2]}
SlurmUser=root
PidFile={self.folder}/run/slurmdbd.pid
LogFile={self.folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=root
StorageLoc=slurm_acct_db
"""
        )
        conf.chmod(0o600)
        # slurmdbd reads the slurmdbd.conf that is beside SLURM_CONF.
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        self._wait("slurmdbd", lambda: "test" in self.run("sacctmgr", "-i", "add", "cluster", "test", check=False))

    def _write_conf(self) -> None:
        controller, _, dbd, *nodes = self._ports
        host = socket.gethostname().split(".")[0]
        lines = [
            "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={controller}", "SlurmUser=root",
            "AuthType=auth/munge", "CryptoType=crypto/munge",
            # cred_expire is also the delay before a requeued job starts again; 5 is the smallest accepted value
            f"AuthInfo=socket={self.folder}/munge/socket,cred_expire=5",
            f"StateSaveLocation={self.folder}/state", f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/run/slurmctld.pid", f"SlurmdPidFile={self.folder}/run/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log", f"SlurmdLogFile={self.folder}/log/slurmd.%n.log",
            "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none",
            "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core", "SlurmdParameters=config_overrides",
            "SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,bf_continue",
            "PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE",
            "SlurmctldParameters=preempt_send_user_signal", "JobRequeue=1", "KillWait=2", "CompleteWait=0",
            "SlurmdTimeout=10", "ReturnToService=1", f"MaxArraySize={self.max_array_size}", "MaxJobCount=20000",
            "MinJobAge=300", "MpiDefault=none", "GresTypes=gpu",
        ]  # fmt: skip
        if self.accounting:
            lines += [
                "AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={dbd}", f"AccountingStoragePass={self.folder}/munge/socket",
                "AccountingStorageTRES=gres/gpu",
            ]  # fmt: skip
        for node, port in zip(NODES, nodes, strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=4000 "
                "Gres=gpu:2 State=UNKNOWN"
            )
        everywhere = f"Nodes={','.join(NODES)} State=UP MaxTime=INFINITE OverSubscribe=NO"
        lines += [
            f"PartitionName=cpu {everywhere} Default=YES PriorityTier=10 PreemptMode=OFF",
            f"PartitionName=preempt {everywhere} PriorityTier=1 PreemptMode=REQUEUE GraceTime=5",
            f"PartitionName=high {everywhere} PriorityTier=100 PreemptMode=OFF",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        # Two character devices that exist on every machine serve as GPUs.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")

    def _spawn(self, name: str, command: list[str | Path]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [str(part) for part in command],
                env=self.env,  # `stop` recognizes this cluster's processes by SLURM_CONF in it
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, daemon: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline or self._daemons[daemon].poll() is not None:
                logs = sorted((self.folder / "log").glob(f"{daemon}*"))
                tails = "\n".join(f"{log}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
                raise RuntimeError(f"{daemon} does not answer\n{tails}")
            time.sleep(0.05)

    def _pids(self, program: str) -> list[int]:
        return [pid for pid in self._all_pids() if Path(cmdline(pid).split(" ")[0]).name == program]

    def _all_pids(self) -> list[int]:
        """Living processes whose environment names this cluster, except this one."""
        mark = f"SLURM_CONF={self.conf}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes() and not is_zombie(entry):
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended in the meantime
        return found


def kill(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def cmdline(pid: int) -> str:
    """A process's command line; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_zombie(entry: Path) -> bool:
    """Whether a process has ended and its parent has not reaped it."""
    return (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"


def listens(port: int) -> bool:
    """Whether a process on this machine accepts connections on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Ports that no process uses at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
