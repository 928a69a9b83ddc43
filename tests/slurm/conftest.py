"""A real SLURM cluster for the tests in this folder, started once, and a small pipeline to run on it."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.chain import ChainFolder, StepState, submit_chain
from slurm.profile import Profile, build_profile
from slurm.queue import QueuedJob, live_jobs
from slurm.submit import StepWork
from tests.slurm import standin
from tests.slurm.strict_site import StrictCluster
from tests.slurm_cluster.cluster import SlurmCluster, missing

STAGES = ("prepare", "validate", "generate", "train")


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[SlurmCluster]:
    yield from started(SlurmCluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))))


@pytest.fixture(scope="session")
def running_plain_cluster() -> Iterator[SlurmCluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    yield from started(SlurmCluster(folder, accounting=False, max_array_size=8))


@pytest.fixture(scope="session")
def running_strict_cluster() -> Iterator[SlurmCluster]:
    yield from started(StrictCluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))))


def started(cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    if reason := missing(cluster.accounting):
        pytest.skip(reason)
    try:
        with cluster:
            yield cluster
    finally:
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture
def slurm_cluster(running_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """SLURM with accounting, which sbatch and squeue use in this process. No jobs are left when a test starts."""
    yield from lent(running_cluster, monkeypatch)


@pytest.fixture
def plain_cluster(running_plain_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """SLURM without sacct and with arrays of at most 8 elements."""
    yield from lent(running_plain_cluster, monkeypatch)


@pytest.fixture
def strict_cluster(running_strict_cluster: StrictCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictCluster]:
    """A site with limits: see `tests.slurm.strict_site`."""
    for _ in lent(running_strict_cluster, monkeypatch):
        yield running_strict_cluster


def lent(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    monkeypatch.chdir(standin.ROOT)
    yield cluster
    cluster.cancel_all()


class SmallRun:
    """A run of the small pipeline."""

    def __init__(self, folder: Path, seconds: float = 0.0, **profile: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "seconds").write_text(str(seconds))
        (folder / "faults").mkdir(exist_ok=True)
        self.chain = ChainFolder(folder / "slurm")
        defaults = {"memory": "100M", "time": 30, "cpus": 1}
        tree = {"defaults": defaults, "grace_seconds": 10, **profile}
        self.profile: Profile = build_profile(tree, STAGES, "the test's profile")
        self.steps: list[StepWork] = []

    def step(self, name: str, shards: int | None, after: list[str], distributed: bool = False) -> None:
        self.steps.append(standin.work(self.folder, name, shards, after, distributed))

    def fault(self, step: str, shard: int | None, statement: str) -> None:
        """Make a task run a Python statement, once, after its second item."""
        (self.folder / "faults" / f"{step}-{shard}").write_text(statement)

    def submit(self) -> list[StepState]:
        """Submit what is left, as running the same command again does."""
        left = []
        for step in self.steps:
            shards = standin.pending(self.folder, step.name, step.shards)
            if shards:
                left.append(
                    standin.work(self.folder, step.name, None, step.after, step.distributed)
                    if step.shards is None
                    else StepWork(**{**step.__dict__, "shards": shards})
                )
        return submit_chain(self.chain, self.profile, left)

    def jobs(self) -> list[QueuedJob]:
        return live_jobs(self.chain.token())

    def running(self, step: str) -> list[QueuedJob]:
        return [job for job in self.jobs() if job.step == step and not job.is_gate and job.state == "RUNNING"]

    def state(self, step: str) -> StepState:
        state = self.chain.step(step)
        assert state is not None
        return state

    def wait_for(self, condition: Callable[[], object], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"timed out waiting; queue: {self.jobs()}\n{self.logs()}"
            time.sleep(0.2)

    def wait(self, seconds: float = 200.0) -> None:
        """Wait until none of this run's jobs is in the queue."""
        self.wait_for(lambda: not self.jobs(), seconds)

    def logs(self) -> str:
        files = [*self.folder.glob("logs/*/*.log"), *self.folder.glob("slurm/submitit/*.out")]
        return "\n".join(f"{file}:\n{file.read_text()[-800:]}" for file in files)

    def records(self) -> dict[tuple[str, int | None], list[str]]:
        """Recorded items by step and shard, duplicates included."""
        shards = [(step.name, shard) for step in self.steps for shard in (step.shards or [None])]
        return {key: standin.records(self.folder, *key) for key in shards}

    def undisturbed(self) -> dict[tuple[str, int | None], list[str]]:
        """The records of a run without faults: every item once."""
        return {key: [str(item) for item in range(standin.ITEMS)] for key in self.records()}

    def attempts(self, step: str, shard: int | None) -> list[Path]:
        return sorted((self.folder / "attempts").glob(f"{step}-{shard}-*"))
