"""LoRA training with the HF Trainer: one process or many (DDP, DeepSpeed ZeRO), resumed bit for bit on a CPU.

Writes into its folder::

    checkpoint-500/     adapter, optimizer, schedule, RNG, position in the data, complete.json
    best-500/           the adapter with the best validation so far; best.json names it
    log.jsonl           a line every few steps; validation.jsonl a line a validation
    tensorboard/        the same figures, where tensorboard is installed
    parameters.json     what is trained, measured
    adapter/            the result, in peft's format, with a model card
"""

from __future__ import annotations

import gc
import importlib.util
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from data_prep.files import write_atomic, write_json
from data_prep.outcomes import Interrupted, UserError
from data_prep.records import Example
from vqa import distributed
from vqa.dataset import VQADataset, load_dataset_and_metadata
from vqa.models.base import Model, model_class
from vqa.models.lora import apply_lora_to_model, parameter_table
from vqa.settings import EvaluateSettings, ModelSettings, TrainSettings
from vqa.training import checkpoints
from vqa.training.callbacks import LogCallback, StopCallback, ValidationCallback
from vqa.training.card import model_card
from vqa.training.logs import LOGS, forget_after
from vqa.training.trainer import LoraTrainer, disk_full, training_arguments


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
    """Train an adapter, going on from the newest whole checkpoint in ``out``.

    Where the batch does not fit on the GPU it is divided, and more steps are accumulated: the effective batch and the
    order of the questions stay. That goes for one process; several are told to configure it.

    Args:
        name: what the model is called in logs and tables.
        model: weights, LoRA, batch sizes.
        settings: hyper-parameters.
        data: the curated splits.
        image_root: the folder of the images.
        out: takes what is written.
        stop: becomes true when the process was asked to stop.

    Returns:
        Optimizer steps of the whole training, those before an interruption included.

    Raises:
        Interrupted: asked to stop; a checkpoint is saved.
        UserError: weights or data are missing, the loss became NaN, the disk is full, memory does not suffice, the checkpoint
            is another world's.
    """
    splits, _ = load_dataset_and_metadata(data)
    if not splits["train"]:
        raise UserError(f"{data / 'train.jsonl'} is empty: there is nothing to train {name} on.")
    batch, accumulation = model.batch_size, model.gradient_accumulation
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            return _Training(name, model, settings, data, splits, image_root, out, batch, accumulation).run(stop)
        except torch.OutOfMemoryError:
            pass  # left before anything else is done: the traceback's frames hold the network and its optimizer
        except (OSError, RuntimeError, ValueError) as error:
            raise disk_full(error, out) or error from error
        if batch == 1:
            raise UserError(f"{name} does not fit on this GPU even with batch_size 1: use a GPU with more memory.")
        batch, accumulation = divided(batch, accumulation)
        if distributed.count() > 1:
            raise UserError(
                f"{name} does not fit on a GPU. Set models.{name}.batch_size to {batch} and "
                f"models.{name}.gradient_accumulation to {accumulation}: the same effective batch in less memory."
            )
        print(f"{name}: out of GPU memory; going on with batches of {batch} x {accumulation}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


def divided(batch: int, accumulation: int) -> tuple[int, int]:
    """The next smaller batch whose accumulated steps make the same effective batch: 4 x 4 → 2 x 8 → 1 x 16, 6 x 1 → 3 x 2."""
    assert batch > 1, batch
    smaller = next(size for size in range(batch // 2, 0, -1) if batch * accumulation % size == 0)
    return smaller, batch * accumulation // smaller


class _Training:
    """One attempt at a training with one size of batch."""

    def __init__(
        self,
        name: str,
        model_settings: ModelSettings,
        settings: TrainSettings,
        data: Path,
        splits: dict[str, list[Example]],
        image_root: Path,
        out: Path,
        batch: int,
        accumulation: int,
    ) -> None:
        set_seed(settings.seed)
        self.name, self.model_settings, self.settings, self.data, self.out = name, model_settings, settings, data, out
        self.model: Model = model_class(model_settings.kind).load(model_settings, [e.answer for e in splits["train"]])
        apply_lora_to_model(self.model, model_settings.lora)
        self.parameters = parameter_table(self.model)
        arguments = training_arguments(settings, out, len(splits["train"]), batch, accumulation)
        self.validation = ValidationCallback(
            self.model,
            fixed_sample(splits["val"], settings.validation_questions, settings.seed),
            image_root,
            out,
            every=settings.eval_steps,
            patience=settings.patience,
            answering=EvaluateSettings(),
        )
        log = LogCallback(out, batch * accumulation * distributed.count())
        dataset = VQADataset(splits["train"], image_root)
        self.trainer = LoraTrainer(
            settings,
            model=self.model.net,
            args=arguments,
            train_dataset=dataset,
            data_collator=dataset.collator(self.model.processor),
            callbacks=[log, self.validation],
        )
        self.validation.trainer = log.trainer = self.trainer
        self.batch = f"{batch} x {accumulation}"
        if distributed.count() > 1:
            self.batch += f" on {distributed.count()} processes ({settings.strategy})"

    def run(self, stop: Callable[[], bool]) -> int:
        """Train to the end, or until ``stop``; the number of optimizer steps in all."""
        resumed = distributed.decided(self._checkpoint)
        if resumed and distributed.decided(lambda: self.validation.exhausted(checkpoints.step_of(resumed))):
            self.finish()  # it had stopped early, and was killed before it could
            return checkpoints.step_of(resumed)
        stopping = StopCallback(stop)
        self.trainer.add_callback(stopping)
        for callback in _tensorboard(self.out, resumed):
            self.trainer.add_callback(callback)
        began = time.monotonic()
        self.trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        state = self.trainer.state
        seconds = time.monotonic() - began
        print(f"{self.name}: waited {self.trainer.waited / seconds:.0%} of the time for images", flush=True)
        if stopping.stopped:
            raise Interrupted(f"training of {self.name} at step {state.global_step} of {state.max_steps}; saved")
        self.finish()
        return state.global_step

    def _checkpoint(self) -> Path | None:
        """Where to go on from; called in the first process only, which also tidies up."""
        write_json(self.out / "parameters.json", self.parameters)
        resumed = checkpoints.newest_valid(self.out, processes=distributed.count(), strategy=self.settings.strategy)
        checkpoints.discard_newer(self.out, than=resumed)
        if resumed is None:
            self.validation.forget()
        for name in LOGS:
            forget_after(self.out / name, checkpoints.step_of(resumed) if resumed else 0)
        print(
            f"{self.name}: {'going on from ' + resumed.name if resumed else 'training from the beginning'}", flush=True
        )
        return resumed

    def finish(self) -> None:
        """Put the best adapter (without validation: the last) under its final name, complete or not at all."""
        adapter, part = self.out / "adapter", self.out / "adapter.part"
        best = distributed.decided(self.validation.best)
        if best is None:
            self.trainer.require_finite()
            self.trainer.save_model(str(part), _internal_call=True)
        if self.trainer.is_world_process_zero():
            if best is not None:
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(self.out / best["folder"], part)
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust
            self.model.save_extra(part)
            card = model_card(
                self.name,
                self.model_settings,
                self.settings,
                parameters=self.parameters,
                best=best,
                batch=self.batch,
                data=self.data,
                added_answers=len(self.model.adapter_answers(part)),
            )
            write_atomic(part / "README.md", card.encode())
            shutil.rmtree(adapter, ignore_errors=True)
            part.rename(adapter)
        distributed.wait_for_all()  # nobody says that it is done before it is


def _tensorboard(out: Path, resumed: Path | None) -> list[TrainerCallback]:
    """The callback that logs to TensorBoard, if it is installed; steps after the checkpoint are written anew."""
    if importlib.util.find_spec("tensorboard") is None or distributed.rank() != 0:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    purge_step = checkpoints.step_of(resumed) + 1 if resumed else None
    return [TensorBoardCallback(SummaryWriter(str(out / "tensorboard"), purge_step=purge_step))]


def fixed_sample(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """The same questions every time, whatever the order of the file, those about one image together."""
    ordered = sorted(examples, key=lambda example: example.id)
    sample = random.Random(seed).sample(ordered, min(size, len(ordered)))
    return sorted(sample, key=lambda example: (example.image_path, example.id))
