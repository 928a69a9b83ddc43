"""The contract of a stage, whoever drives it: what is `pending`, `run` some of it, report its `status`.

A stage is either one job (`SingleStage`) or an array of shards (`ShardedStage`); task, local pool, gate, status and dry
run never ask which. One file a stage.
"""

from __future__ import annotations

import dataclasses
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from data_prep.files import file_digest, read_json, read_jsonl, write_json
from data_prep.outcomes import UserError
from data_prep.records import from_dict
from jobs.config import Config
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.shards.digest import differences, digest, refuse_other_settings
from jobs.shards.journal import journal_files
from jobs.shards.loop import pending_shards, run_shard
from jobs.shards.marker import ShardMarker
from jobs.shards.progress import ItemT, ShardSource
from jobs.shards.store import freeze_shards, frozen_shards
from jobs.stages.status import DONE, StepStatus, sharded_status, with_last_error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended that did not fail."""

    summary: str  # one line for its log
    requeue: bool = False  # it was asked to stop before its end


class Stage(ABC):
    """A stage of one run, bound to its configuration and, in training and evaluation, to a model.

    A task is a shard's index, or None for the only job of a stage.
    """

    name: ClassVar[str]
    per_model: ClassVar[bool] = False  # one step for each model of the configuration
    needs_gpu: ClassVar[bool] = False
    process_per_gpu: ClassVar[bool] = False  # a single task uses all GPUs, one process each

    def __init__(self, run: RunDir, config: Config, target: str = "") -> None:
        self.run_dir = run
        self.config = config
        self.target = target
        self.step = Step(self.name, target)
        self.stopping: Callable[[], bool] = lambda: False  # whether the task was asked to stop

    @abstractmethod
    def tasks(self) -> list[int | None]:
        """All tasks of the stage."""

    @abstractmethod
    def pending(self) -> list[int | None]:
        """The tasks with work left.

        Raises:
            UserError: what is there was made under other settings, and cannot be redone unasked.
        """

    @abstractmethod
    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        """Do one task, as far as time allows.

        Raises:
            UserError: something that the user can fix.
        """

    @abstractmethod
    def status(self) -> StepStatus:
        """How far it is."""

    def check_settings(self) -> None:  # noqa: B027 - most stages have nothing to refuse
        """Look, before a launch changes anything, whether what is there was made under the present settings.

        Raises:
            UserError: it was made under others; names each that changed.
        """

    def before_tasks(self) -> None:  # noqa: B027 - most stages have nothing to prepare
        """Called by the launch, once, before the first task starts."""

    def stop_seconds(self) -> float:
        """How long a task may take to end once it was asked to stop."""
        return 30.0

    def read(self, path: Path, kind: type[T]) -> Iterator[T]:
        """Stream the records that an earlier stage wrote.

        Raises:
            UserError: that stage has not run.
        """
        if not path.is_file():
            raise UserError(
                f"{self.step} has no input: there is no {path}. Launch without --stages, or name the earlier stages too."
            )
        return read_jsonl(path, kind)


class ShardedStage(Stage, ShardSource[ItemT]):
    """Validate, generate, evaluate: an array of tasks that all run the shard loop."""

    @abstractmethod
    def shards(self) -> int:
        """How many tasks the configuration asks for."""

    @abstractmethod
    def expected_items(self) -> int | None:
        """How many items there are, from the markers of earlier stages; None before those are done."""

    def sources(self) -> Sequence[ShardSource[ItemT]]:
        """What a task works on, one after the other: the stage itself, and whatever else it has for the same tasks."""
        return [self]

    def tasks(self) -> list[int | None]:
        return list(range(self.shards()))

    def pending(self) -> list[int | None]:
        return [*sorted({shard for source in self.sources() for shard in pending_shards(source, self.shards())})]

    def before_tasks(self) -> None:
        for store in self._all_stores():
            freeze_shards(store, self.shards())

    def _all_stores(self) -> list[ShardStore]:
        return [store for source in self.sources() for store in source.stores().values()]

    def check_settings(self) -> None:
        for variant, store in self.stores().items():
            refuse_other_settings(store, self.settings(variant))

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        self.stopping = stop
        if any(frozen_shards(store) is None for store in self._all_stores()):
            self.before_tasks()
        shards = self.shards()
        if task is None or not 0 <= task < shards:
            raise UserError(f"{self.step} has shards 0 to {shards - 1}; --shard {task} is not one of them.")
        result, *others = (run_shard(source, task, shards, stop) for source in self.sources())
        remaining = sum(one.remaining for one in (result, *others))
        if remaining and not any(one.stopped for one in (result, *others)):
            raise UserError(
                f"{self.step} shard {task} ended with {remaining:,} items that were not tried: see the lines above."
            )
        return TaskResult(
            f"{self.step} shard {task}: {result.items:,} items = {result.done:,} done + {result.failed:,} failed "
            f"+ {result.remaining:,} remaining",
            requeue=remaining > 0,
        )

    def status(self) -> StepStatus:
        return with_last_error(self.run_dir, self.step, sharded_status(self, self.step, self.expected_items()))


@dataclass(slots=True)
class Outcome:
    """What a stage that is one job did."""

    counts: dict[str, int]
    reasons: dict[str, int] = field(default_factory=dict)  # dropped, by reason
    outputs: list[Path] = field(default_factory=list)  # files whose digests later stages build on


@dataclass(frozen=True, slots=True)
class StageMarker:
    """``done.json`` of a stage that is one job: what it was made from, and what it made."""

    counts: dict[str, int]
    reasons: dict[str, int]
    settings: Mapping[str, object]  # those that decide the result
    inputs: dict[str, str]  # digests by name
    outputs: dict[str, str]  # SHA-256 by file, relative to the stage's folder
    seconds: float
    finished_at: float  # Unix time

    @classmethod
    def read(cls, run: RunDir, step: Step) -> StageMarker | None:
        """The marker of a step, if there is one."""
        fields = read_json(run.done_file(step))
        return from_dict(cls, fields) if fields else None


class SingleStage(Stage):
    """Prepare, curate, train, report: one job whose marker says what it was made from."""

    rerun_freely: ClassVar[bool] = True  # cheap and deterministic; False: expensive, rerun only on request

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """The settings that decide the result."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Digests of what it reads, by name."""

    @abstractmethod
    def execute(self) -> Outcome:
        """Do it. Files appear whole or not at all, so a kill in the middle leaves nothing half done."""

    def changes(self, marker: StageMarker) -> list[str]:
        """How the marker differs from what would be made now; empty where it is up to date."""
        found = differences(marker.settings, self.settings())
        found += [f"input {line}" for line in differences(marker.inputs, self.inputs())]
        for name, known in marker.outputs.items():
            path = self.run_dir.step_folder(self.step) / name
            if not path.is_file() or file_digest(path) != known:
                found.append(f"{path} is missing or damaged")
        return found

    def tasks(self) -> list[int | None]:
        return [None]

    def pending(self) -> list[int | None]:
        marker = StageMarker.read(self.run_dir, self.step)
        if marker is None:
            return [None]
        changes = self.changes(marker)
        if changes and not self.rerun_freely:
            folder = self.run_dir.step_folder(self.step)
            raise UserError(
                f"{self.step} was made from something else ({'; '.join(changes)}). Restore that, use another --run-dir, "
                f"or delete {folder} to do it again."
            )
        return [None] if changes else []

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        self.stopping = stop
        if not self.pending():
            return TaskResult(f"{self.step}: nothing to do")
        started = time.time()
        settings, inputs = self.settings(), self.inputs()
        folder = self.run_dir.step_folder(self.step)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = self.execute()
        if os.environ.get("RANK", "0") == "0":  # of the processes of a distributed training the first writes the marker
            marker = StageMarker(
                counts=outcome.counts,
                reasons=outcome.reasons,
                settings=settings,
                inputs=inputs,
                outputs={str(path.relative_to(folder)): file_digest(path) for path in outcome.outputs},
                seconds=round(time.time() - started, 3),
                finished_at=time.time(),
            )
            write_json(self.run_dir.done_file(self.step), marker)
        return TaskResult(f"{self.step}: " + ", ".join(f"{count:,} {name}" for name, count in outcome.counts.items()))

    def status(self) -> StepStatus:
        status = StepStatus(str(self.step))
        if marker := StageMarker.read(self.run_dir, self.step):
            status = dataclasses.replace(
                status, state=DONE, counts=marker.counts, reasons=marker.reasons, seconds=marker.seconds
            )
        return with_last_error(self.run_dir, self.step, status)


def outputs_digest(run: RunDir, step: Step) -> str:
    """One digest of what a single stage wrote, for the stages that read it; "" before it is done."""
    marker = StageMarker.read(run, step)
    return digest(marker.outputs) if marker else ""


def store_digest(store: ShardStore) -> str:
    """One digest of a store's markers, which change when its records do; of a shard without one, of its records' sizes."""
    known = frozen_shards(store)
    if known is None:
        return ""
    parts: list[object] = []
    for shard in range(known.shards):
        if marker := ShardMarker.read(store, shard):
            parts.append((marker.keys_digest, marker.fingerprint, marker.done, marker.failed))
        else:
            parts.append([(path.name, path.stat().st_size) for path in journal_files(store.shard(shard))])
    return digest(parts)
