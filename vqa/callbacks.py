"""What happens between training steps: validation, the log, and listening for a request to stop."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.records import Example, UserError, write_json
from vqa.dataset import by_picture, open_picture
from vqa.metrics import exact_match
from vqa.models.base import Batch, Model
from vqa.settings import EvaluateSettings

if TYPE_CHECKING:
    from transformers import Trainer

BEST = "best.json"


def evaluate_on_samples(
    model: Model, examples: Sequence[Example], image_root: Path, settings: EvaluateSettings, *, adapted: bool = True
) -> list[dict[str, Any]]:
    """Answer some questions now: rows of id, question, truth, answer, confidence and whether it is right."""
    rows: list[dict[str, Any]] = []
    groups = list(by_picture(examples).items())
    training = model.net.training
    model.net.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(groups), settings.batch_size):
                part = groups[start : start + settings.batch_size]
                pictures = [open_picture(image_root, path) for path, _ in part]
                batch = model.processor.collate(pictures, [[e.question for e in group] for _, group in part])
                moved: Batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                said = model.answer(moved, model.encode(moved), settings, adapted=adapted)
                flat = [example for _, group in part for example in group]
                for example, answer in zip(flat, said, strict=True):
                    right = bool(exact_match(example.answer, answer.text))
                    rows.append(
                        {
                            "id": example.id,
                            "question": example.question,
                            "truth": example.answer,
                            **asdict(answer),
                            "right": right,
                        }
                    )
    finally:
        model.net.train(training)
    return rows


class ValidationCallback(TrainerCallback):
    """Answers a fixed sample of the validation split every few steps, logs it, keeps the best adapter, stops early.

    ``validation.jsonl`` has a line a validation; ``best.json`` names the best adapter's folder and its exact match. The
    share is plain exact match after normalisation.
    """

    def __init__(
        self,
        model: Model,
        sample: Sequence[Example],
        image_root: Path,
        out: Path,
        *,
        every: int,
        patience: int,
        answering: EvaluateSettings,
    ) -> None:
        self.model, self.sample, self.image_root, self.out = model, list(sample), image_root, out
        self.every, self.patience, self.answering = every, patience, answering
        self.trainer: Trainer | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Validate at every ``every``-th step and at the last one."""
        if self.sample and (state.global_step % self.every == 0 or state.global_step >= state.max_steps):
            self.validate(state, control)

    def validate(self, state: TrainerState, control: TrainerControl) -> None:
        """Answer the sample now."""
        assert self.trainer is not None
        rows = evaluate_on_samples(self.model, self.sample, self.image_root, self.answering)
        share = sum(row["right"] for row in rows) / len(rows)
        step = state.global_step
        best = self.best()
        better = best is None or share > best["exact_match"] or step <= best["step"]
        if better:
            self.trainer.save_model(str(self.out / f"best-{step}"), _internal_call=True)
        elif self.patience and best is not None and step - best["step"] >= self.patience * self.every:
            control.should_training_stop = True  # every process comes to the same decision
        if not self.trainer.is_world_process_zero():
            return
        if control.should_training_stop:
            print(f"step {step}: no better exact match for {self.patience} validations, stopping", flush=True)
        line = {"step": step, "epoch": state.epoch, "exact_match": share, "questions": len(rows), "at": time.time()}
        append(self.out / "validation.jsonl", line | {"answers": rows})
        print(f"step {step}: exact match {share:.3f} on {len(rows)} validation questions", flush=True)
        if better:
            write_json(self.out / BEST, {"step": step, "exact_match": share, "folder": f"best-{step}"})
            if best is not None and best["step"] != step:
                shutil.rmtree(self.out / best["folder"], ignore_errors=True)

    def best(self) -> dict[str, Any] | None:
        """The best validation so far."""
        try:
            found: dict[str, Any] = json.loads((self.out / BEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found


class LogCallback(TrainerCallback):
    """Writes ``log.jsonl``: loss, learning rate, gradient norm, samples a second, memory. Ends a training that broke."""

    def __init__(self, out: Path, questions_per_step: int) -> None:
        self.out, self.questions_per_step = out, questions_per_step
        self.last = (time.monotonic(), 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure speed from here."""
        self.last = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write a line.

        Raises:
            UserError: the loss is no number any more.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"The loss became {logs['loss']} at step {state.global_step}. The last good checkpoint is kept; lower "
                f"train.learning_rate (now {args.learning_rate:g}) or set train.precision to fp32, in a new --run-dir."
            )
        if not state.is_world_process_zero:
            return
        now, before = time.monotonic(), self.last
        self.last = (now, state.global_step)
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "epoch": state.epoch,
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "samples_per_second": (state.global_step - before[1])
            * self.questions_per_step
            / max(1e-9, now - before[0]),
            "memory_bytes": memory_bytes(),
            "at": time.time(),
        }
        append(self.out / "log.jsonl", line)


class StopCallback(TrainerCallback):
    """Saves and ends when one of the processes was asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the flag of every process: they must all end at the same step."""
        asked = self.stop()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flag = torch.tensor(float(asked), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a log; a torn last line of a killed process is ended first."""
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def memory_bytes() -> int:
    """The most memory used so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
