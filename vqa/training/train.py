"""LoRA training with the HF Trainer: one process or many (DDP, DeepSpeed ZeRO); on a CPU resuming is exact to the bit.

Writes into its folder::

    checkpoint-500/     adapter, optimizer, schedule, RNG, position in the data, complete.json
    best-500/           the adapter of the best validation so far; best.json names it
    log.jsonl           a line every few steps; validation.jsonl has a line per validation
    tensorboard/        the same figures, if tensorboard is installed
    parameters.json     parameter counts
    adapter/            the result, in peft's format, with a model card
"""

from __future__ import annotations

import gc
import importlib.util
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from data_prep.files import write_atomic, write_json
from data_prep.outcomes import Interrupted, UserError
from data_prep.records import Example
from vqa import distributed
from vqa.dataset import VQADataset, as_batch, by_image, load_splits, verify_dataset
from vqa.inference.saved_model import test_saved_model
from vqa.inference.synthetic import synthetic_example
from vqa.models.base import Model, Processor, model_class
from vqa.models.lora import apply_lora_to_model, name_published_class, parameter_table
from vqa.settings import EvaluateSettings, ModelSettings, TrainSettings
from vqa.training import checkpoints
from vqa.training.callbacks import SYNTHETIC, LogCallback, StopCallback, ValidationCallback
from vqa.training.card import ModelCard
from vqa.training.errors import disk_full
from vqa.training.logs import LOGS, forget_after
from vqa.training.trainer import LoraTrainer, training_arguments

PROBLEMS_SHOWN = 5
FEW_STEPS = 50  # after fewer an adapter may well not have learned to say anything


def train(
    name: str,
    model: ModelSettings,
    settings: TrainSettings,
    *,
    data: Path,
    image_root: Path,
    out: Path,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train an adapter, resuming from the newest complete checkpoint in ``out``.

    If a batch does not fit on the GPU, it is divided and more batches are accumulated: the effective batch size and the order
    of the questions stay. Only a single process does so; several ask for another configuration.

    Args:
        name: of the model in logs and tables.
        model: weights, LoRA, batch sizes.
        settings: hyper-parameters.
        data: folder of the curated splits.
        image_root: folder of the images.
        out: folder for everything that is written.
        stop: becomes true when the process is asked to stop.

    Returns:
        Optimizer steps of the whole training, including those before interruptions.

    Raises:
        Interrupted: asked to stop; a checkpoint is saved.
        UserError: weights or data are missing or wrong, the loss became NaN, the disk is full, memory does not suffice, or the
            checkpoint is from another number of processes or strategy.
    """
    splits = load_splits(data)
    if not splits["train"]:
        raise UserError(f"{data / 'train.jsonl'} is empty: there is nothing to train on.")
    task = _Task(name, model, settings, data, image_root, out)
    batch, accumulation = model.batches
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            return _Training(task, splits, batch, accumulation).run(stop)
        except torch.OutOfMemoryError:
            pass  # go on outside of the handler: its traceback's frames hold the network and its optimizer
        except (OSError, RuntimeError, ValueError) as error:
            raise disk_full(error, out) or error from error
        if batch == 1:
            raise UserError(f"{name} does not fit on this GPU even with batch_size 1: use a GPU with more memory.")
        batch, accumulation = divided(batch, accumulation)
        if distributed.count() > 1:
            raise UserError(
                f"{name} does not fit on a GPU. Set models.{name}.batch_size to {batch} and "
                f"models.{name}.gradient_accumulation to {accumulation}: the same effective batch size in less memory."
            )
        print(f"{name}: out of GPU memory, continuing with batches of {batch} x {accumulation}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


def _require_sound(task: _Task, splits: Mapping[str, list[Example]], processor: Processor) -> None:
    """Say what `verify_dataset` checked.

    Raises:
        UserError: it found a problem.
    """
    # A small dataset may have no validation or test split.
    check = verify_dataset({name: rows for name, rows in splits.items() if rows}, task.image_root, processor)
    if distributed.rank() == 0:
        print("\n".join(f"{task.name}: {line}" for line in check.lines), flush=True)
    if check.problems:
        shown = "; ".join(check.problems[:PROBLEMS_SHOWN])
        raise UserError(
            f"The dataset in {task.data} has {len(check.problems)} problems: {shown}. Restore the missing images, or run the "
            f"stage curate again."
        )


def divided(batch: int, accumulation: int) -> tuple[int, int]:
    """The next smaller batch with the same effective size: 4 x 4 → 2 x 8 → 1 x 16, 6 x 1 → 3 x 2."""
    assert batch > 1, batch
    smaller = next(size for size in range(batch // 2, 0, -1) if batch * accumulation % size == 0)
    return smaller, batch * accumulation // smaller


@dataclass(frozen=True, slots=True)
class _Task:
    """What to train; see `train`."""

    name: str
    model: ModelSettings
    settings: TrainSettings
    data: Path
    image_root: Path
    out: Path


class _Training:
    """One attempt at a task with one batch size."""

    def __init__(self, task: _Task, splits: Mapping[str, list[Example]], batch: int, accumulation: int) -> None:
        settings, out = task.settings, task.out
        set_seed(settings.seed)  # before LoRA draws its first weights
        self.task, self.name, self.out = task, task.name, task.out
        self.model: Model = model_class(task.model.kind).load(task.model, [e.answer for e in splits["train"]])
        _require_sound(task, splits, self.model.processor)
        apply_lora_to_model(self.model, task.model.lora)
        if task.model.features is not None and settings.strategy != "zero3":  # whose ranks must encode in step
            reason = self.model.store_features(task.model.features)
            if reason and distributed.rank() == 0:
                print(f"{self.name}: {reason}", flush=True)
        self.parameters = parameter_table(self.model)  # before the Trainer, which partitions the weights under ZeRO-3
        arguments = training_arguments(settings, out, len(splits["train"]), batch, accumulation)
        self.validation = ValidationCallback(
            self.model,
            fixed_sample(splits["val"], settings.validation_images, settings.seed),
            task.image_root,
            out,
            every=settings.eval_steps,
            patience=settings.patience,
            answering=EvaluateSettings(precision=settings.precision),
        )
        log = LogCallback(out, batch * accumulation * distributed.count())
        self.trainer = LoraTrainer(
            settings,
            model=self.model.net,
            args=arguments,
            train_dataset=VQADataset(splits["train"], task.image_root, self.model.processor),
            data_collator=as_batch,
            callbacks=[log, self.validation],
        )
        self.validation.trainer = log.trainer = self.trainer
        self.batch = f"{batch} x {accumulation}"
        if distributed.count() > 1:
            self.batch += f" on {distributed.count()} processes ({settings.strategy})"

    def run(self, stop: Callable[[], bool]) -> int:
        """Train to the end or until ``stop``; returns the optimizer steps in all."""
        resumed = distributed.rank0_decides(self._checkpoint)
        if resumed and distributed.rank0_decides(lambda: self.validation.exhausted(checkpoints.step_of(resumed))):
            self.finish()  # it had stopped early and was killed before it finished
            return checkpoints.step_of(resumed)
        stopping = StopCallback(stop)
        self.trainer.add_callback(stopping)
        for callback in _tensorboard(self.out, resumed):
            self.trainer.add_callback(callback)
        began = time.monotonic()
        self.trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        state = self.trainer.state
        seconds = time.monotonic() - began
        print(f"{self.name}: waited for images {self.trainer.waited / seconds:.0%} of the time", flush=True)
        if stopping.stopped:
            raise Interrupted(f"training of {self.name} at step {state.global_step} of {state.max_steps}; saved")
        self.finish()
        return state.global_step

    def _checkpoint(self) -> Path | None:
        """The checkpoint to resume from. Called on rank 0 only, which also deletes what comes after it."""
        write_json(self.out / "parameters.json", self.parameters)
        resumed = checkpoints.newest_valid(
            self.out, processes=distributed.count(), strategy=self.task.settings.strategy
        )
        checkpoints.discard_newer(self.out, than=resumed)
        if resumed is None:
            self.validation.forget()
        for name in LOGS:
            forget_after(self.out / name, checkpoints.step_of(resumed) if resumed else 0)
        start = f"resuming from {resumed.name}" if resumed else "training from the beginning"
        print(f"{self.name}: {start}", flush=True)
        return resumed

    def finish(self) -> None:
        """Put the best adapter (without validation the last) under its final name, complete or not at all."""
        adapter, part = self.out / "adapter", self.out / "adapter.part"
        best = distributed.rank0_decides(self.validation.best)
        if best is None:
            self.trainer.require_finite()
            self.trainer.save_model(str(part), _internal_call=True)
        if self.trainer.is_world_process_zero():
            if best is not None:
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(self.out / best.folder, part)
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle: loading it runs code
            name_published_class(self.model, part)
            self.model.save_extra(part)
            card = ModelCard(
                name=self.name,
                model=self.task.model,
                settings=self.task.settings,
                parameters=self.parameters,
                best=best,
                batch=self.batch,
                data=self.task.data,
                added_answers=len(self.model.adapter_answers(part)),
            )
            write_atomic(part / "README.md", card.render().encode())
        with distributed.raise_together(self.trainer.args.device, "trying the saved adapter"):
            if self.trainer.is_world_process_zero():
                self._try(part)
                shutil.rmtree(adapter, ignore_errors=True)
                part.rename(adapter)
        distributed.wait_for_all()  # no rank reports success before the adapter is there

    def _try(self, adapter: Path) -> None:
        """Have a fresh process load the adapter and answer a rendered example."""
        folder = self.out / SYNTHETIC
        few = self.trainer.state.global_step < FEW_STEPS
        for shown in test_saved_model(self.task.model, adapter, [synthetic_example(folder)], folder, may_be_silent=few):
            print(
                f"{self.name}: the saved adapter answers {shown.question!r} (rendered, {shown.truth}) with {shown.text!r}"
            )


def _tensorboard(out: Path, resumed: Path | None) -> list[TrainerCallback]:
    """The callback that logs to TensorBoard, if installed. Steps after the checkpoint are purged, as they come again."""
    if importlib.util.find_spec("tensorboard") is None or distributed.rank() != 0:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    purge_step = checkpoints.step_of(resumed) + 1 if resumed else None
    return [TensorBoardCallback(SummaryWriter(str(out / "tensorboard"), purge_step=purge_step))]


def fixed_sample(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """``size`` images with all their questions; depends on the examples and the seed only. Ordered by image.

    An image's first question costs most of the work, so further ones are nearly free.
    """
    groups = by_image(sorted(examples, key=lambda example: (example.image_path, example.id)))
    chosen = random.Random(seed).sample(sorted(groups), min(size, len(groups)))
    return [example for path in sorted(chosen) for example in groups[path]]
