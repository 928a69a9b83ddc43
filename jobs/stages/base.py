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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from data_prep.files import file_digest, read_json, read_jsonl, write_json
from data_prep.outcomes import UserError
from data_prep.records import from_dict
from jobs.config import Config
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.run.run import RunRecord
from jobs.shards.digest import differences, digest
from jobs.shards.journal import journal_files, settings_of
from jobs.shards.loop import pending_shards, refuse_redo, run_shard
from jobs.shards.lost import Lost, lost_files, lost_records
from jobs.shards.marker import ShardMarker
from jobs.shards.outdated import find_outdated
from jobs.shards.progress import ItemT, ShardSource
from jobs.shards.store import freeze_shards, frozen_shards, shard_folders
from jobs.stages.status import DONE, OUTDATED, StepStatus, is_complete, sharded_status, with_last_error

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

    @abstractmethod
    def lost(self) -> Lost:
        """What it had finished and is gone since."""

    def check_settings(self, *, redo: bool) -> None:  # noqa: B027 - most stages have nothing to refuse
        """Look, before a launch changes anything, whether it would pay again for what is there, or train again.

        Args:
            redo: the user agreed to that.

        Raises:
            UserError: it would; says what that costs, and each setting that changed.
        """

    def may_redo(self) -> bool:
        """Whether the user agreed, in the last launch, to pay again for what changed and to train again."""
        record = RunRecord.read(self.run_dir)
        return record is not None and record.launches[-1].redo

    @abstractmethod
    def outdated(self) -> str:
        """Why what is there does not count any more, as the start of "...: done again"; "" where it does."""

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
    def input_is_there(self) -> bool:
        """Whether the stages before have come to their end, so that the number of items is known."""

    def sources(self) -> Sequence[ShardSource[ItemT]]:
        """What a task works on, one after the other: the stage itself, and whatever else it has for the same tasks."""
        return [self]

    def tasks(self) -> list[int | None]:
        return list(range(self.shards()))

    def pending(self) -> list[int | None]:
        found = self.unfinished()
        if found and not self.may_redo():
            self._refuse_redo()
        return [*found]

    def unfinished(self) -> list[int]:
        """The shards with work left, whether it may be done or not."""
        return sorted({shard for source in self.sources() for shard in pending_shards(source, self.shards())})

    def outdated(self) -> str:
        found = [one for source in self.sources() if (one := find_outdated(source))]
        return "; ".join(one.why for one in found)

    def before_tasks(self) -> None:
        for store in self._all_stores():
            freeze_shards(store, self.shards())

    def _all_stores(self) -> list[ShardStore]:
        return [store for source in self.sources() for store in source.stores().values()]

    def check_settings(self, *, redo: bool) -> None:
        if not redo and self.input_is_there():
            self._refuse_redo()

    def _refuse_redo(self) -> None:
        for source in self.sources():
            if source.paid and not is_complete(source):
                refuse_redo(source, find_outdated(source))

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

    def lost(self) -> Lost:
        return sum((lost_records(store) for store in self._all_stores()), Lost())

    def status(self) -> StepStatus:
        return with_last_error(
            self.run_dir, self.step, sharded_status(self, self.step, input_is_there=self.input_is_there())
        )


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

    def changed_sources(self, marker: StageMarker) -> list[str]:
        """How settings and inputs differ from those that the marker states."""
        found = differences(marker.settings, self.settings())
        return found + [f"input {line}" for line in differences(marker.inputs, self.inputs())]

    def changes(self, marker: StageMarker) -> list[str]:
        """How the marker differs from what would be made now; empty where it is up to date."""
        found = self.changed_sources(marker)
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
        if changes and not self.rerun_freely and not self.may_redo():
            self.refuse(changes, marker)
        return [None] if changes else []

    def check_settings(self, *, redo: bool) -> None:
        marker = StageMarker.read(self.run_dir, self.step)
        # What its inputs will be is not known before the stages before it have run: its own settings are.
        if marker and not self.rerun_freely and not redo and (changes := differences(marker.settings, self.settings())):
            self.refuse(changes, marker)

    def refuse(self, changes: list[str], marker: StageMarker) -> None:
        """Stop before something expensive is done again without consent.

        Raises:
            UserError: always; says what changed and what it costs.
        """
        raise UserError(
            f"{self.step} took {marker.seconds / 60:,.0f} minutes and was made from something else ({'; '.join(changes)}). "
            f"Set that back, or add --redo to do it again; what is there is kept beside it."
        )

    def outdated(self) -> str:
        marker = StageMarker.read(self.run_dir, self.step)
        return "; ".join(self.changes(marker)) if marker else ""

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

    def lost(self) -> Lost:
        marker = StageMarker.read(self.run_dir, self.step)
        return lost_files(self.run_dir.step_folder(self.step), marker.outputs if marker else ())

    def status(self) -> StepStatus:
        status = StepStatus(str(self.step))
        if marker := StageMarker.read(self.run_dir, self.step):
            with suppress(UserError, OSError):  # its input may be on another machine: nothing is known of it then
                status.outdated = "; ".join(self.changed_sources(marker))
            status = dataclasses.replace(
                status,
                state=OUTDATED if status.outdated else DONE,
                counts=marker.counts,
                reasons=marker.reasons,
                seconds=marker.seconds,
            )
        return with_last_error(self.run_dir, self.step, status)


def outputs_digest(run: RunDir, step: Step) -> str:
    """One digest of what a single stage wrote, for the stages that read it; "" before it is done."""
    marker = StageMarker.read(run, step)
    return digest(marker.outputs) if marker else ""


def records_digest(source: ShardSource[Any], variant: str) -> str:
    """One digest of the record files that count, for the stages that read them: a lost or changed record changes it."""
    store, fingerprint = source.stores()[variant], digest(source.settings(variant))
    parts: list[object] = []
    for folder in shard_folders(store):
        marker = ShardMarker.read(store, int(folder.name))
        known = marker.records if marker and marker.fingerprint == fingerprint else {}
        files = [path for path in journal_files(folder) if settings_of(path) == fingerprint]
        parts.append((folder.name, sorted((path.name, path.stat().st_size) for path in files)))
        parts.append({name: extent for name, extent in known.items() if settings_of(Path(name)) == fingerprint})
        parts.append(marker.items_digest if marker and known else "")
    return digest(parts)
