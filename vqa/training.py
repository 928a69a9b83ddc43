"""LoRA training with the HF Trainer: one process or many (DDP, DeepSpeed ZeRO), resumed bit for bit on a CPU.

Writes into its folder::

    checkpoint-500/     adapter, optimiser, schedule, RNG, position in the data, complete.json
    best-500/           the adapter with the best validation so far; best.json names it
    log.jsonl           a line every few steps; validation.jsonl a line a validation
    parameters.json     what is trained, measured
    adapter/            the result, in peft's format, with a model card
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from data_prep.records import Example, Interrupted, UserError, write_atomic, write_json
from vqa import checkpoints
from vqa.callbacks import LogCallback, StopCallback, ValidationCallback
from vqa.dataset import PictureOrder, VQADataset, load_dataset_and_metadata
from vqa.inference import precision_of
from vqa.lora import apply_lora_to_model, parameter_table
from vqa.models.base import Model, model_class
from vqa.settings import EvaluateSettings, ModelSettings, TrainSettings

DEEPSPEED = Path(__file__).parent / "deepspeed"


def train(
    name: str,
    model: ModelSettings,
    settings: TrainSettings,
    *,
    data: Path,
    image_root: Path,
    out: Path,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train an adapter, going on from the newest whole checkpoint in ``out``.

    Args:
        name: what the model is called in logs and tables.
        model: weights, LoRA, batch sizes.
        settings: hyper-parameters.
        data: the curated splits.
        image_root: the folder of the pictures.
        out: takes what is written.
        stop: becomes true when the process was asked to stop.

    Raises:
        Interrupted: asked to stop; a checkpoint is saved.
        UserError: weights or data are missing, the loss became NaN, the checkpoint is another world's.
        OSError: the disk is full; the last whole checkpoint is intact.
    """
    splits, _ = load_dataset_and_metadata(data)
    if not splits["train"]:
        raise UserError(f"{data / 'train.jsonl'} is empty: there is nothing to train {name} on.")
    out.mkdir(parents=True, exist_ok=True)
    batch, accumulation = model.batch_size, model.gradient_accumulation
    while True:
        try:
            _train(name, model, settings, splits, image_root, out, stop, batch, accumulation)
            return
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise UserError(
                    f"{name} does not fit on this GPU even with batch_size 1: use a GPU with more memory."
                ) from None
            batch, accumulation = math.ceil(batch / 2), accumulation * 2
            print(f"{name}: out of GPU memory; going on with batches of {batch} x {accumulation}", flush=True)
            torch.cuda.empty_cache()


def _train(
    name: str,
    model_settings: ModelSettings,
    settings: TrainSettings,
    splits: dict[str, list[Example]],
    image_root: Path,
    out: Path,
    stop: Callable[[], bool],
    batch: int,
    accumulation: int,
) -> None:
    set_seed(settings.seed)
    model = model_class(model_settings.kind).load(model_settings, [e.answer for e in splits["train"]])
    apply_lora_to_model(model, model_settings.lora)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = _arguments(settings, out, len(splits["train"]), batch, accumulation, processes)
    if arguments.process_index == 0:
        checkpoints.prune(out, settings.keep_checkpoints)
        write_json(out / "parameters.json", parameter_table(model))
    dataset = VQADataset(splits["train"], image_root)
    stopping = StopCallback(stop)
    validation = ValidationCallback(
        model,
        fixed_sample(splits["val"], settings.validation_questions, settings.seed),
        image_root,
        out,
        every=settings.eval_steps,
        patience=settings.patience,
        answering=EvaluateSettings(),
    )
    trainer = _Trainer(
        model=model.net,
        args=arguments,
        train_dataset=dataset,
        data_collator=dataset.collator(model.processor),
        callbacks=[LogCallback(out, batch * accumulation * processes), validation, stopping],
    )
    trainer.keep, trainer.strategy, trainer.seed = settings.keep_checkpoints, settings.strategy, settings.seed
    # The loss is a mean over a batch; steps that are accumulated are averaged by the trainer.
    trainer.model_accepts_loss_kwargs = False
    validation.trainer = trainer
    resumed = checkpoints.newest_valid(out, processes=processes, strategy=settings.strategy)
    print(f"{name}: {'going on from ' + resumed.name if resumed else 'training from the beginning'}", flush=True)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if stopping.stopped:
        raise Interrupted(f"training of {name} at step {trainer.state.global_step} of {trainer.state.max_steps}; saved")
    _finish(name, model, model_settings, settings, trainer, validation, out)


def _arguments(
    settings: TrainSettings, out: Path, questions: int, batch: int, accumulation: int, processes: int
) -> TrainingArguments:
    cpu = not torch.cuda.is_available()
    precision = precision_of(torch.device("cpu" if cpu else "cuda"), settings.precision)
    steps = math.ceil(questions / (batch * processes * accumulation)) * settings.epochs
    zero = settings.strategy.startswith("zero")
    tensorboard = importlib.util.find_spec("tensorboard") is not None
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(out / "tensorboard"))
    return TrainingArguments(
        output_dir=str(out),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup_share * steps),
        max_grad_norm=settings.max_grad_norm,
        fp16=precision == torch.float16,
        bf16=precision == torch.bfloat16,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and processes > 1 else None,
        ddp_find_unused_parameters=False if processes > 1 else None,
        deepspeed=str(DEEPSPEED / f"{settings.strategy}.json") if zero else None,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.eval_steps,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
        eval_strategy="no",  # by logits it fills the memory; ValidationCallback answers instead
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=["tensorboard"] if tensorboard else [],
    )


class _Trainer(Trainer):
    """The HF Trainer, with whole pictures in order, checkpoints that are sealed, and a stop at a loss that is no number."""

    keep = 2
    strategy = "ddp"
    seed = 0

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """Questions in an order that keeps those about one picture together."""
        assert isinstance(self.train_dataset, VQADataset)
        return PictureOrder(self.train_dataset.examples, self.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes a part
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            checkpoints.seal(
                folder, step=self.state.global_step, processes=self.args.world_size, strategy=self.strategy
            )
            checkpoints.prune(Path(self.args.output_dir), self.keep)


def fixed_sample(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """The same questions every time, whatever the order of the file, those about one picture together."""
    ordered = sorted(examples, key=lambda example: example.id)
    sample = random.Random(seed).sample(ordered, min(size, len(ordered)))
    return sorted(sample, key=lambda example: (example.image_path, example.id))


def _finish(
    name: str,
    model: Model,
    model_settings: ModelSettings,
    settings: TrainSettings,
    trainer: _Trainer,
    validation: ValidationCallback,
    out: Path,
) -> None:
    """Put the best adapter (without validation: the last) under its final name, complete or not at all."""
    adapter, part = out / "adapter", out / "adapter.part"
    best = validation.best()
    if best is None:
        trainer.save_model(str(part), _internal_call=True)
    if not trainer.is_world_process_zero():
        return
    if best is not None:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(out / best["folder"], part)
    (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust
    model.save_extra(part)
    write_atomic(part / "README.md", model_card(name, model_settings, settings, best, out).encode())
    shutil.rmtree(adapter, ignore_errors=True)
    part.rename(adapter)


def model_card(name: str, model: ModelSettings, settings: TrainSettings, best: dict[str, Any] | None, out: Path) -> str:
    """What somebody who finds the adapter should know about it."""
    parameters = json.loads((out / "parameters.json").read_text(encoding="utf-8"))
    scored = (
        f"Exact match on {settings.validation_questions} or fewer validation questions: {best['exact_match']:.3f} "
        f"(step {best['step']}, the best of this training)."
        if best
        else "It was not validated: the validation split is empty. This is the last step's adapter."
    )
    lora = model.lora
    return f"""---
base_model: {model.weights}
library_name: peft
tags: [visual-question-answering, lora]
---
# {name}: LoRA adapter for one-word questions about products

{scored}

| | |
| --- | --- |
| base model | `{model.weights}` ({model.kind}) |
| LoRA | r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout}, targets {lora.targets or "the default of the model"} |
| parameters | {parameters["trainable"]:,} of {parameters["total"]:,} trained ({parameters["percent"]} %) |
| training | {settings.epochs:g} epochs, batch {model.batch_size} x {model.gradient_accumulation}, learning rate {settings.learning_rate:g}, weight decay {settings.weight_decay:g}, seed {settings.seed} |

Load it with `peft.PeftModel.from_pretrained(base, this_folder)`, or answer with `launch.py predict --adapter this_folder`.
"""
