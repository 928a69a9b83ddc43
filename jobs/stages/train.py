"""Stage 6: LoRA on one model, from the curated splits."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_prep.files import last_json_line, last_json_lines, read_json, write_atomic, write_json, write_jsonl
from data_prep.outcomes import UserError
from data_prep.records import TEACHER_FILE, Example
from jobs.run.contents import download, hub_commit, weights_identity
from jobs.run.layout import Step
from jobs.shards.digest import differences
from jobs.stages.base import Outcome, SingleStage, StageMarker, TaskResult, records_digest
from jobs.stages.status import DONE, OUTDATED, PARTIAL, StepStatus
from jobs.stages.verify import Verify, opinions
from vqa.settings import AGREED, is_hub_name

# Settings that decide how fast the adapter comes out, or how much is printed, but not which adapter.
SPEED_ONLY = {"workers", "logging_steps", "keep_checkpoints"}
LINES_OF_RATE = 20  # of log.jsonl, from which the rate is known
GAP_SECONDS = 600.0  # between two lines: the training was interrupted


class Train(SingleStage):
    """Writes 6_train/<model>/adapter; resumes from its own checkpoints."""

    name = "train"
    per_model = True
    needs_gpu = True
    process_per_gpu = True
    rerun_freely = False  # an adapter costs hours

    def settings(self) -> Mapping[str, object]:
        model = self.config.models[self.target]
        return {
            "model": model.model_dump(mode="json") | {"weights": weights_identity(self.run_dir, model.weights)},
            "train": self.config.train.model_dump(mode="json", exclude=SPEED_ONLY),
        }

    def inputs(self) -> dict[str, str]:
        curate = StageMarker.read(self.run_dir, Step("curate"))
        outputs = curate.outputs if curate else {}
        found = {name: outputs.get(name, "") for name in ("train.jsonl", "val.jsonl")}
        if self.keeps_agreed:
            found["verify"] = records_digest(Verify(self.run_dir, self.config), "")
        return found

    @property
    def keeps_agreed(self) -> bool:
        """Whether only rows are trained on whose answer the second opinion agrees with."""
        return (self.config.models[self.target].keep or self.config.train.keep) == AGREED

    @property
    def data(self) -> Path:
        """The folder of the splits that are trained on."""
        return self.run_dir.step_folder(self.step) / "agreed" if self.keeps_agreed else self.run_dir.dataset

    def choose_rows(self) -> None:
        """Write the splits that are trained on, where they are not the curated ones: the agreed training rows, and the others whole.

        Raises:
            UserError: no row is agreed on.
        """
        if not self.keeps_agreed:
            return
        rows = list(self.read(self.run_dir.split("train"), Example))
        known = opinions(self.run_dir, self.config, rows)
        kept = [row for row in rows if known[row.id].seen == AGREED]
        if not kept:
            raise UserError(f"{self.step}: keep is agreed, and no training answer is: run --stages verify first.")
        write_jsonl(self.data / "train.jsonl", kept)
        for name in ("val.jsonl", "test.jsonl", TEACHER_FILE):
            if (self.run_dir.dataset / name).is_file():
                write_atomic(self.data / name, (self.run_dir.dataset / name).read_bytes())
        print(f"{self.step}: {len(kept):,} of {len(rows):,} training questions are agreed, and kept", flush=True)

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        weights = self.config.models[self.target].weights
        # Of weights that are not there yet the settings could not say which they are.
        if not Path(weights).is_dir() and is_hub_name(weights) and hub_commit(weights) is None:
            download(weights)
        return super().run(task, stop)

    def begin(self) -> None:
        """Write down what this training is made from; an interrupted one is only resumed if it was made from the same.

        What was made from something else is kept beside it, once the user agreed to train again.

        Raises:
            UserError: there are checkpoints of a training from something else, and the user did not agree.
        """
        folder = self.run_dir.step_folder(self.step)
        file = folder / "begun.json"
        now: dict[str, Any] = {"settings": self.settings(), "inputs": self.inputs()}
        known = read_json(file)
        first = os.environ.get("RANK", "0") == "0"
        if known is not None and known != now and (any(folder.glob("checkpoint-*")) or self.adapter.is_file()):
            changed = differences(known["settings"], now["settings"])
            changed += [f"input {line}" for line in differences(known["inputs"], now["inputs"])]
            if not self.may_redo():
                raise UserError(
                    f"The training of {self.target} that was interrupted was made from something else ({'; '.join(changed)}). "
                    f"Set that back, or add --redo to train from the beginning; what is there is kept beside it."
                )
            if first:
                self.keep_beside(folder)
        if not first:
            while read_json(file) != now:  # the first process tidies up, then writes
                time.sleep(0.5)
            return
        self.choose_rows()
        if known != now:
            write_json(file, now)

    @property
    def adapter(self) -> Path:
        """The trained weights."""
        return self.run_dir.adapter(self.target) / "adapter_model.safetensors"

    def keep_beside(self, folder: Path) -> None:
        """Move an earlier training out of the way: ``6_train/blip-1``, which is no name of a model."""
        numbers = (number for number in itertools.count(1) if not folder.with_name(f"{folder.name}-{number}").exists())
        kept = folder.with_name(f"{folder.name}-{next(numbers)}")
        folder.rename(kept)
        folder.mkdir()
        print(f"The earlier training of {self.target} is kept in {kept}", flush=True)

    def execute(self) -> Outcome:
        from vqa.training.train import train  # torch takes seconds to import; launch and status never need it

        folder = self.run_dir.step_folder(self.step)
        self.read(self.run_dir.split("train"), Example)
        self.begin()
        steps = train(
            self.target,
            self.config.model_with_features(self.target, self.run_dir.path),
            self.config.train,
            data=self.data,
            image_root=self.config.data.image_root,
            out=folder,
            stop=self.stopping,
        )
        if not self.adapter.is_file():
            raise UserError(
                f"Training of {self.target} ended without an adapter in {self.adapter.parent}: see the log above."
            )
        if os.environ.get("RANK", "0") == "0":
            self._name_base_from_adapter(self.adapter.parent)
        return Outcome({"steps": steps}, outputs=[self.adapter])

    def _name_base_from_adapter(self, adapter: Path) -> None:
        """Have an adapter name its base by the way from its own folder, where the base lies in the run: both may be moved."""
        base, run = Path(self.config.models[self.target].weights).absolute(), self.run_dir.path
        if not base.is_relative_to(run):
            return
        relative = Path(os.path.relpath(base, adapter)).as_posix()
        config = read_json(adapter / "adapter_config.json") or {}
        write_json(adapter / "adapter_config.json", config | {"base_model_name_or_path": relative})
        card = adapter / "README.md"
        write_atomic(card, card.read_text().replace(str(base), relative).encode())

    def status(self) -> StepStatus:
        status = super().status()
        folder = self.run_dir.step_folder(self.step)
        if status.state in (DONE, OUTDATED) or not (folder / "begun.json").is_file():
            return status
        status.state, status.unit, status.phase = PARTIAL, "steps", "loading"
        validation = last_json_line(folder / "validation.jsonl")
        status.validation = validation["exact_match"] if validation else None
        lines = last_json_lines(folder / "log.jsonl", LINES_OF_RATE)
        if lines and lines[-1].get("max_steps"):
            last = lines[-1]
            status.items, status.done, status.loss = int(last["max_steps"]), int(last["step"]), last["loss"]
            status.remaining = status.items - status.done
            status.phase = "training" if status.remaining else "finishing"
            # Of a training that was interrupted and resumed, the time between is not counted.
            pairs = [(a, b) for a, b in itertools.pairwise(lines) if 0 < b["at"] - a["at"] < GAP_SECONDS]
            seconds = sum(b["at"] - a["at"] for a, b in pairs)
            if pairs and seconds > 0:
                status.per_second = sum(b["step"] - a["step"] for a, b in pairs) / seconds
                status.seconds_left = status.remaining / status.per_second if status.per_second > 0 else None
        return status
