"""What a stage is to the rest of jobs/: either one job, or a `Work` for the shard loop. One file a stage."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from data_prep.files import file_digest, read_json, read_jsonl, write_json
from data_prep.outcomes import UserError
from jobs.config import Config
from jobs.run.layout import RunDir, Step, ShardStore
from jobs.shards.digest import differences, digest
from jobs.shards.journal import journal_files
from jobs.shards.loop import Work, known_shards

T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """What a stage that is one job did: it goes into the stage's marker, status and report."""

    counts: dict[str, int]
    reasons: dict[str, int] = field(default_factory=dict)  # dropped, by reason
    outputs: list[Path] = field(default_factory=list)  # files whose digests later stages build on


class Stage(ABC):
    """A stage of one run, bound to its configuration and target."""

    name: ClassVar[str]

    def __init__(self, run: RunDir, config: Config, target: str = "") -> None:
        self.run_dir = run
        self.config = config
        self.target = target
        self.step = Step(self.name, target)
        self.stopping: Callable[[], bool] = lambda: False  # whether the task was asked to stop

    def read(self, path: Path, kind: type[T]) -> Iterator[T]:
        """Stream the records that an earlier stage wrote.

        Raises:
            UserError: it has not run.
        """
        if not path.is_file():
            raise UserError(
                f"{self.step} has nothing to work on: there is no {path}. Launch without --stages, or name the stages "
                f"before it, too."
            )
        return read_jsonl(path, kind)


class ShardedStage(Stage):
    """Validate, generate, evaluate: an array of tasks that all run the shard loop."""

    @abstractmethod
    def shards(self) -> int:
        """How many tasks the configuration asks for."""

    @abstractmethod
    def work(self) -> Work[Any]:
        """What the loop is to do; cheap to make, nothing is loaded before the first item."""


class SingleStage(Stage):
    """Prepare, curate, train, report: one job whose marker says what it was made from."""

    again: ClassVar[bool] = True  # cheap and deterministic: done again when what it is made from changed

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that decide what comes out."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Digests of what it reads, by name."""

    @abstractmethod
    def execute(self) -> Outcome:
        """Do it. Files appear whole or not at all, so that a kill in the middle leaves nothing half done."""

    def marker(self) -> dict[str, Any] | None:
        """The stage's done.json, if there is one."""
        return read_json(self.run_dir.done_file(self.step))

    def changed(self) -> list[str]:
        """In what the stage's marker differs from what would be made now; empty where it is up to date.

        Raises:
            UserError: an output no longer has the bytes that were written, and making it again costs hours.
        """
        marker = self.marker()
        if marker is None:
            return ["not done yet"]
        found = differences(marker["settings"], self.settings())
        found += [f"input {line}" for line in differences(marker["inputs"], self.inputs())]
        for name, known in marker["outputs"].items():
            path = self.run_dir.step_folder(self.step) / name
            if not path.is_file() or file_digest(path) != known:
                found.append(f"{path} is missing or damaged")
        return found

    def complete(self) -> bool:
        """Whether nothing is to be done.

        Raises:
            UserError: it was done with other settings or inputs, and is too dear to be done again unasked.
        """
        marker, changed = self.marker(), self.changed()
        if marker is not None and changed and not self.again:
            folder = self.run_dir.step_folder(self.step)
            raise UserError(
                f"{self.step} was done from something else ({'; '.join(changed)}). Set it back, use another --run-dir, "
                f"or delete {folder} to do it again."
            )
        return not changed

    def execute_and_mark(self) -> Outcome:
        """Do it, then write the marker (of the processes of a distributed training, the first does)."""
        started = time.time()
        settings, inputs = self.settings(), self.inputs()
        folder = self.run_dir.step_folder(self.step)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = self.execute()
        if os.environ.get("RANK", "0") != "0":
            return outcome
        write_json(
            self.run_dir.done_file(self.step),
            {
                "counts": outcome.counts,
                "reasons": outcome.reasons,
                "settings": settings,
                "inputs": inputs,
                "outputs": {str(path.relative_to(folder)): file_digest(path) for path in outcome.outputs},
                "fingerprint": digest({"settings": settings, "inputs": inputs}),
                "seconds": round(time.time() - started, 3),
                "finished_at": time.time(),
            },
        )
        return outcome


def outputs_digest(stage_marker: dict[str, Any] | None) -> str:
    """One digest of what a single stage wrote, for the stages that read it; "" before it is done."""
    return digest(stage_marker["outputs"]) if stage_marker else ""


def store_digest(store: ShardStore) -> str:
    """One digest of a store's markers, which change when its records do; where a shard has none, of its records' sizes."""
    known = known_shards(store)
    if known is None:
        return ""
    parts: list[object] = []
    for shard in range(known["shards"]):
        if marker := read_json(store.done(shard)):
            parts.append({name: marker[name] for name in ("keys_digest", "fingerprint", "done", "failed")})
        else:
            parts.append([[path.name, path.stat().st_size] for path in journal_files(store.shard(shard))])
    return digest(parts)
