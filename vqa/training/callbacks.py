"""Callbacks between training steps: validation, logging, and stopping on request."""

from __future__ import annotations

import math
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.files import read_json, write_json
from data_prep.records import Example, by_image, from_dict
from vqa import distributed
from vqa.evaluation.collapse import alarm, spreads
from vqa.inference.samples import AnsweredSample, evaluate_on_samples, loss_on_samples
from vqa.inference.synthetic import synthetic_example
from vqa.models.base import Model
from vqa.settings import EvaluateSettings
from vqa.training.errors import diverged
from vqa.training.logs import BEST, STEPS, VALIDATIONS, append

if TYPE_CHECKING:
    from vqa.training.trainer import LoraTrainer


SYNTHETIC = "synthetic"  # folder of the rendered image


@dataclass(frozen=True, slots=True)
class Best:
    """The best validation so far, written to ``best.json``."""

    step: int
    exact_match: float  # share of the sample, 0 to 1
    questions: int  # size of the sample
    folder: str  # of its adapter


class ValidationCallback(TrainerCallback):
    """Every few steps answers a fixed sample of the validation split, logs it, keeps the best adapter, and stops early.

    It also answers a rendered example, whose answer anybody can judge (`vqa.inference.synthetic`).

    ``validation.jsonl`` has a line per validation, with the loss and the alarm of `vqa.evaluation.collapse`; ``best.json`` names
    the best adapter's folder and its exact match, which is computed after normalization. Each rank answers a part of the sample.
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
        """Validate at every ``every``-th step and at the last."""
        if self.sample and (state.global_step % self.every == 0 or state.global_step >= state.max_steps):
            self.validate(state, control)

    def validate(self, state: TrainerState, control: TrainerControl) -> None:
        """Answer the sample now.

        Raises:
            UserError: the loss or a weight is infinite or NaN.
        """
        assert self.trainer is not None
        self.trainer.require_finite()
        step, (answers, synthetic, losses) = state.global_step, self._answers()
        exact_match, loss = sum(answer.right for answer in answers) / len(answers), sum(losses) / len(losses)
        best, new = distributed.rank0_decides(self.best), Best(step, exact_match, len(answers), f"best-{step}")
        # A best of this step or a later one dates from before a kill: training has gone back to a checkpoint since.
        better = best is None or exact_match > best.exact_match or step <= best.step
        if better:
            self.trainer.save_model(str(self.out / new.folder), _internal_call=True)
        if self.trainer.is_world_process_zero():
            shown, *_ = synthetic
            line = {
                "step": step,
                "synthetic": shown.text,
                "epoch": state.epoch,
                "exact_match": exact_match,
                "loss": loss if math.isfinite(loss) else None,
                "questions": len(answers),
            }
            collapsed = self._collapsed(answers)
            append(self.out / VALIDATIONS, line | {"at": time.time(), "collapsed": collapsed, "answers": answers})
            said = f"exact match {exact_match:.3f}, loss {loss:.3f} on {len(answers)} validation questions"
            print(f"step {step}: {said}", flush=True)
            if collapsed:
                print(f"step {step}: the answers have collapsed on {collapsed}", flush=True)
            print(f"step {step}: {shown.question} (rendered, {shown.truth}) → {shown.text}", flush=True)
            if better:
                write_json(self.out / BEST, new)
                if best is not None and best.step != step:
                    shutil.rmtree(self.out / best.folder, ignore_errors=True)  # only after best.json names the new one
        if distributed.rank0_decides(lambda: self.exhausted(step)):
            control.should_training_stop = True
            if self.trainer.is_world_process_zero():
                print(f"step {step}: no better exact match for {self.patience} validations, stopping", flush=True)

    def best(self) -> Best | None:
        """The best validation so far."""
        data = read_json(self.out / BEST)
        return from_dict(Best, data) if data is not None else None

    def _answers(self) -> tuple[list[AnsweredSample], list[AnsweredSample], list[float]]:
        """The answers to the sample, of which this rank computes its part, to the rendered example, and the sample's losses."""
        assert self.trainer is not None
        images = list(by_image(self.sample).values())
        mine = [example for group in images[distributed.rank() :: distributed.count()] for example in group]
        answers: list[AnsweredSample] = []
        synthetic: list[AnsweredSample] = []
        losses: list[float] = []
        with (
            distributed.raise_together(self.trainer.args.device, "answering the validation questions"),
            distributed.whole_weights(self.model.net),
        ):
            answers = evaluate_on_samples(self.model, mine, self.image_root, self.answering)
            losses = loss_on_samples(self.model, mine, self.image_root, self.answering)
            if distributed.rank() == 0:
                folder = self.out / SYNTHETIC
                synthetic = evaluate_on_samples(self.model, [synthetic_example(folder)], folder, self.answering)
        place = {example.id: number for number, example in enumerate(self.sample)}
        ordered = sorted(distributed.all_gather(answers), key=lambda answer: place[answer.id])
        return ordered, synthetic, distributed.all_gather(losses)

    def _collapsed(self, answers: Sequence[AnsweredSample]) -> str:
        """The question types whose answers are all alike or no words, and how; "" where there are none."""
        kinds = {example.id: example.question_type for example in self.sample}
        return alarm(spreads((kinds[answer.id], answer.truth, answer.text) for answer in answers))

    def forget(self) -> None:
        """Delete the best of an earlier training, before one from the beginning."""
        (self.out / BEST).unlink(missing_ok=True)
        for folder in self.out.glob("best-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def exhausted(self, step: int) -> bool:
        """Whether ``patience`` validations have passed since the best."""
        best = self.best()
        return bool(self.patience and best and step - best.step >= self.patience * self.every)


class LogCallback(TrainerCallback):
    """Writes ``log.jsonl``: loss, learning rate, gradient norm, speed, memory, and the share of time spent waiting for batches."""

    def __init__(self, out: Path, questions_per_step: int) -> None:
        self.out, self.questions_per_step = out, questions_per_step
        self.trainer: LoraTrainer | None = None
        self.last = (time.monotonic(), 0, 0.0)  # at the line before: time, step, seconds waited

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start measuring speed, without the time of loading."""
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
            UserError: the loss is infinite or NaN.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):  # a mean over all ranks, so all of them raise
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


class StopCallback(TrainerCallback):
    """Saves a checkpoint and ends the training once any rank was asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask every rank, since all must end at the same step. The last step just ends."""
        asked = distributed.any_rank(self.stop(), args.device)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True


def memory_bytes() -> int:
    """Peak memory so far: the GPU's if there is one, else the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux reports KiB
