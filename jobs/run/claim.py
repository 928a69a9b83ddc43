"""One command at a time writes into a run: it claims the run by making a folder, and holds it as long as it runs.

::

    claims/00007/holder.json      {"host": "login1", "pid": 4711, "command": ["launch.py", ...], "since": 1764073423.2, ...}
    claims/00007/heartbeat        touched every few seconds while the command lives
    claims/00007/released.json    holder.json, renamed at the command's end

The highest number counts. Taking over is making the next folder, which one of any number of contenders can do: mkdir is atomic,
on NFS too. So the claims of a run are never deleted, and no listing needs to be fresh. On the holder's own machine the process itself is
looked at. From elsewhere a claim is dead when its heartbeat is older than a file that the contender writes beside it: both times
are stamped by the file system, so no two clocks are compared.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import Place, read_json, write_json
from data_prep.outcomes import UserError
from data_prep.records import from_dict
from jobs.run.layout import RunDir

HEARTBEAT_SECONDS = 5.0
# A network file system may show another node's touch this much later, and a machine may be that busy.
DEAD_AFTER_SECONDS = 90.0
HOLDER_APPEARS_SECONDS = 2.0  # between a claim's folder and the note of who holds it


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a claim."""

    host: str
    machine: str  # within which a process id means one process; see `this_machine`
    pid: int
    started: str | None  # when the process started, in clock ticks since boot: a reused process id has another
    since: float  # Unix time on the holder's clock, for people
    command: list[str]
    place: Place  # of the claim's folder: a copy of a run is not held by whoever holds the original

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since} ({' '.join(self.command)})"


@contextmanager
def claimed(run: RunDir) -> Iterator[None]:
    """Hold the run while the block runs; makes its folder where there is none.

    Raises:
        UserError: another command holds it, or the folder cannot be written.
    """
    run.refuse_foreign_folder()
    try:
        claim = _acquire(run)
    except OSError as error:
        raise UserError(
            f"Cannot write the run directory {run.path}: {error.strerror}. Choose another with --run-dir; launch.py report "
            f"writes elsewhere with --to."
        ) from error
    ended = threading.Event()
    threading.Thread(target=_keep, args=(claim, ended), name="claim", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):  # where it fails, this process's end is enough
            _release(run, claim)


def is_held(run: RunDir) -> bool:
    """Whether a command seems to be writing into a run; only looks, writes nothing. For people: `claimed` is what decides."""
    try:
        last = max((int(path.name) for path in run.claims.iterdir() if path.name.isdigit()), default=0)
        claim = run.claims / f"{last:05d}"
        fields = read_json(claim / "holder.json")
        if not fields:
            return False
        holder = from_dict(Holder, {**fields, "place": Place(**fields["place"])})
        if not holder.place.is_at(claim):
            return False
        if holder.machine == this_machine():
            return process_started(holder.pid) == holder.started
        return time.time() - _modified(claim / "heartbeat") < DEAD_AFTER_SECONDS
    except OSError:
        return False


def _acquire(run: RunDir) -> Path:
    """Make the next claim's folder; raises UserError where the last one is held."""
    while True:
        run.claims.mkdir(parents=True, exist_ok=True)
        last = max((int(path.name) for path in run.claims.iterdir() if path.name.isdigit()), default=0)
        if last:
            _refuse_if_held(run, run.claims / f"{last:05d}")
        claim = run.claims / f"{last + 1:05d}"
        try:
            claim.mkdir()
        except (FileExistsError, FileNotFoundError):
            continue  # another contender was first, or this node's listing was old, or the run was given up
        (claim / "heartbeat").touch()
        pid = os.getpid()
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        holder = Holder(
            platform.node(), this_machine(), pid, process_started(pid), time.time(), command, Place.of(claim)
        )
        write_json(claim / "holder.json", holder)
        return claim


def _release(run: RunDir, claim: Path) -> None:
    """Let the next command in; a folder that this command made, and refused to make a run of, goes."""
    if claim.name == f"{1:05d}" and not run.run_file.exists():
        refused = run.path / f".claims-{uuid.uuid4().hex}"
        run.claims.rename(refused)
        shutil.rmtree(refused)
        run.path.rmdir()
    else:
        (claim / "holder.json").rename(claim / "released.json")  # which needs no room on a full disk


def _refuse_if_held(run: RunDir, claim: Path) -> None:
    """Raise UserError if somebody lives who holds a claim."""
    holder = _holder(claim)
    if holder is None:
        if (claim / "released.json").exists():
            return
        who, stop = "another command that has just begun", ""
    elif not holder.place.is_at(claim):
        return
    elif holder.machine == this_machine():
        if process_started(holder.pid) != holder.started:
            return
        raise UserError(f"{run.path} is in use by {holder}. Wait for it, or stop it: kill {holder.pid}")
    else:
        who, stop = str(holder), f", or stop it: kill {holder.pid} on {holder.host}"
    silent = _seconds_since_heartbeat(claim)
    if silent < DEAD_AFTER_SECONDS:
        raise UserError(
            f"{run.path} is in use by {who}. Wait for it{stop}. Its last sign of life is {max(0.0, silent):.0f} s old; if it is "
            f"dead, the same command works {DEAD_AFTER_SECONDS:.0f} s after it."
        )


def _holder(claim: Path) -> Holder | None:
    """Who holds a claim; None where it was released, or its maker died before it wrote down who it is."""
    deadline = time.monotonic() + HOLDER_APPEARS_SECONDS
    while True:
        if fields := read_json(claim / "holder.json"):
            return from_dict(Holder, {**fields, "place": Place(**fields["place"])})
        if (claim / "released.json").exists() or time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def _seconds_since_heartbeat(claim: Path) -> float:
    """How old a claim's last sign of life is by the file system's own clock."""
    probe = claim.parent / f".now-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"")
        now = _modified(probe)
    finally:
        probe.unlink(missing_ok=True)
    heartbeat = claim / "heartbeat"
    return now - _modified(heartbeat if heartbeat.exists() else claim)


def _modified(path: Path) -> float:
    """When a file was changed, in seconds. It is opened, for which NFS asks the server; stat may answer from a cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _keep(claim: Path, ended: threading.Event) -> None:
    """Touch the heartbeat until the command ends; end the command if another one has taken over meanwhile."""
    following = claim.with_name(f"{int(claim.name) + 1:05d}")
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(claim / "heartbeat")  # without a time: the file system's own
        # This machine slept, or did not reach the file system, for so long that it was taken for dead.
        if following.exists() and not ended.is_set():
            print(f"{claim.parent.parent}: another command took this run over; stopping", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def this_machine() -> str:
    """Names the space of process ids: the host, its boot, and the container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def process_started(pid: int) -> str | None:
    """The start time of a living process; None for one that is gone or a zombie."""
    try:
        # The command's name stands in parentheses and may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
