"""What happens between training steps: validation, the log, and listening for a request to stop."""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.files import write_json
from data_prep.outcomes import UserError
from data_prep.records import Example
from vqa import distributed
from vqa.dataset import by_image, needed_image
from vqa.evaluation.metrics import exact_match
from vqa.inference.answerer import autocast, cut
from vqa.models.base import Batch, Model
from vqa.settings import EvaluateSettings
from vqa.training.logs import BEST, STEPS, VALIDATIONS, append

if TYPE_CHECKING:
    from vqa.training.trainer import LoraTrainer


def evaluate_on_samples(
    model: Model, examples: Sequence[Example], image_root: Path, settings: EvaluateSettings, *, adapted: bool = True
) -> list[dict[str, Any]]:
    """Answer some questions now: rows of id, question, truth, answer, confidence and whether it is right.

    Rows come image by image, in the order in which images appear first. Where the GPU's memory does not suffice, for
    training holds much of it, batches are halved; answers do not depend on that.
    """
    ordered = [example for group in by_image(examples).values() for example in group]
    training = model.net.training
    model.net.eval()
    try:
        size = settings.batch_size
        while True:
            try:
                return [
                    row
                    for part in cut(iter(ordered), size)
                    for row in _answered(model, part, image_root, settings, adapted)
                ]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2  # outside of the handler, whose traceback keeps the tensors of the attempt alive
            torch.cuda.empty_cache()
    finally:
        model.net.train(training)


def _answered(
    model: Model, examples: Sequence[Example], image_root: Path, settings: EvaluateSettings, adapted: bool
) -> list[dict[str, Any]]:
    groups = by_image(examples)
    images = [needed_image(image_root, path) for path in groups]
    batch = model.processor.collate(images, [[e.question for e in group] for group in groups.values()])
    moved: Batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    with torch.inference_mode(), autocast(model.device, settings.precision):
        said = model.answer(moved, model.encode(moved), settings, adapted=adapted)
    return [
        {"id": example.id, "question": example.question, "truth": example.answer}
        | asdict(answer)
        | {"right": bool(exact_match(example.answer, answer.text))}
        for example, answer in zip(examples, said, strict=True)
    ]


class ValidationCallback(TrainerCallback):
    """Answers a fixed sample of the validation split every few steps, logs it, keeps the best adapter, stops early.

    ``validation.jsonl`` has a line a validation; ``best.json`` names the best adapter's folder and its exact match. The
    share is plain exact match after normalization. Several processes answer a part of the sample each.
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
        self.trainer: LoraTrainer | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Validate at every ``every``-th step and at the last one."""
        if self.sample and (state.global_step % self.every == 0 or state.global_step >= state.max_steps):
            self.validate(state, control)

    def validate(self, state: TrainerState, control: TrainerControl) -> None:
        """Answer the sample now.

        Raises:
            UserError: the loss or the weights are no numbers any more.
        """
        assert self.trainer is not None
        self.trainer.require_finite()
        step, rows = state.global_step, self._rows()
        share = sum(row["right"] for row in rows) / len(rows)
        best = distributed.decided(self.best)
        # A best of this step or a later one is from before a kill: this training has gone back to a checkpoint.
        better = best is None or share > best["exact_match"] or step <= best["step"]
        if better:
            self.trainer.save_model(str(self.out / f"best-{step}"), _internal_call=True)
        if self.trainer.is_world_process_zero():
            line = {"step": step, "epoch": state.epoch, "exact_match": share, "questions": len(rows), "at": time.time()}
            append(self.out / VALIDATIONS, line | {"answers": rows})
            print(f"step {step}: exact match {share:.3f} on {len(rows)} validation questions", flush=True)
            if better:
                write_json(
                    self.out / BEST,
                    {"step": step, "exact_match": share, "questions": len(rows), "folder": f"best-{step}"},
                )
                if best is not None and best["step"] != step:
                    shutil.rmtree(self.out / best["folder"], ignore_errors=True)
        if distributed.decided(lambda: self.exhausted(step)):
            control.should_training_stop = True
            if self.trainer.is_world_process_zero():
                print(f"step {step}: no better exact match for {self.patience} validations, stopping", flush=True)

    def best(self) -> dict[str, Any] | None:
        """The best validation so far."""
        try:
            found: dict[str, Any] = json.loads((self.out / BEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def _rows(self) -> list[dict[str, Any]]:
        """The sample's answers, of which this process finds its part."""
        assert self.trainer is not None
        images = list(by_image(self.sample).values())
        mine = [example for group in images[distributed.rank() :: distributed.count()] for example in group]
        rows: list[dict[str, Any]] = []
        with (
            distributed.together(self.trainer.args.device, "answering the validation questions"),
            distributed.whole_weights(self.model.net),
        ):
            rows = evaluate_on_samples(self.model, mine, self.image_root, self.answering)
        place = {example.id: number for number, example in enumerate(self.sample)}
        return sorted(distributed.everywhere(rows), key=lambda row: place[row["id"]])

    def forget(self) -> None:
        """Delete the best of an earlier training: this one begins anew."""
        (self.out / BEST).unlink(missing_ok=True)
        for folder in self.out.glob("best-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def exhausted(self, step: int) -> bool:
        """Whether the best is so long ago that training is over."""
        best = self.best()
        return bool(self.patience and best and step - best["step"] >= self.patience * self.every)


class LogCallback(TrainerCallback):
    """Writes ``log.jsonl``: loss, learning rate, gradient norm, samples a second, memory, the share of the time in which the next
    batches were not ready. Ends a training that broke."""

    def __init__(self, out: Path, questions_per_step: int) -> None:
        self.out, self.questions_per_step = out, questions_per_step
        self.trainer: LoraTrainer | None = None
        self.last = (time.monotonic(), 0, 0.0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure speed from here."""
        self.last = (time.monotonic(), state.global_step, self._waited())

    def _waited(self) -> float:
        return self.trainer.waited if self.trainer else 0.0

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
        if not math.isfinite(logs["loss"]):  # a mean over all processes: each one comes to this
            raise diverged(state.global_step, args.learning_rate)
        if not state.is_world_process_zero:
            return
        now, before = time.monotonic(), self.last
        self.last = (now, state.global_step, self._waited())
        seconds = max(1e-9, now - before[0])
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "epoch": state.epoch,
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "samples_per_second": (state.global_step - before[1]) * self.questions_per_step / seconds,
            "waiting_share": round((self.last[2] - before[2]) / seconds, 4),
            "memory_bytes": memory_bytes(),
            "at": time.time(),
        }
        append(self.out / STEPS, line)


def diverged(step: int, learning_rate: float) -> UserError:
    """The sentence for a training whose loss or weights are no numbers any more."""
    return UserError(
        f"The loss or a weight became infinite or not a number by step {step}. The last good checkpoint is kept; lower "
        f"train.learning_rate (now {learning_rate:g}) or set train.precision to fp32, in a new --run-dir."
    )


class StopCallback(TrainerCallback):
    """Saves and ends when one of the processes was asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the flag of every process: they must all end at the same step."""
        asked = distributed.anywhere(self.stop(), args.device)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True


def memory_bytes() -> int:
    """The most memory used so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
