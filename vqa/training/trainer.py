"""The HF Trainer as training uses it: questions of an image together, checkpoints that are sealed, no step after a loss that
is no number."""

from __future__ import annotations

import errno
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.outcomes import UserError
from vqa import distributed
from vqa.dataset import ImageOrder, VQADataset
from vqa.inference.answerer import precision_of
from vqa.settings import TrainSettings
from vqa.training import checkpoints
from vqa.training.callbacks import diverged

DEEPSPEED = Path(__file__).parent / "deepspeed"


class LoraTrainer(Trainer):
    """See the module.

    Args:
        settings: hyper-parameters; the trainer's own arguments are made of them by `training_arguments`.
        options: what `transformers.Trainer` takes.
    """

    def __init__(self, settings: TrainSettings, **options: Any) -> None:
        super().__init__(**options)
        assert isinstance(self.train_dataset, VQADataset)
        self.settings = settings
        self.order = ImageOrder(self.train_dataset.examples, settings.seed)
        self.add_callback(_Epochs(self.order))
        self.waited = 0.0  # seconds in which the next batches were not ready
        # The loss is a mean over a batch; steps that are accumulated are averaged by the trainer.
        self.model_accepts_loss_kwargs = False

    def require_finite(self) -> None:
        """Look at the losses since the last log line and at what is trained, in every process.

        Raises:
            UserError: something is infinite or not a number.
        """
        watched = [self._tr_loss] + [getattr(p, "ds_tensor", p) for p in self.model.parameters() if p.requires_grad]
        bad = not all(bool(torch.isfinite(tensor).all()) for tensor in watched)
        if distributed.anywhere(bad, self.args.device):
            raise diverged(self.state.global_step, self.args.learning_rate)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of the next step; the seconds until they are there are counted."""
        began = time.perf_counter()
        found = super().get_batch_samples(*arguments)
        self.waited += time.perf_counter() - began
        return found

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """Questions in an order that keeps those about one image together."""
        return self.order

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that counts once its manifest is written, which is the last thing.

        Raises:
            UserError: the loss is no number, or the disk is full; earlier checkpoints are as they were.
        """
        self.require_finite()
        out, step = Path(self.args.output_dir), self.state.global_step
        folder = out / f"checkpoint-{step}"
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(folder, ignore_errors=True)  # what a kill left of an earlier attempt
        distributed.wait_for_all()
        try:
            with distributed.together(self.args.device, f"saving {folder.name}"):
                super()._save_checkpoint(model, trial)
            with distributed.together(self.args.device, f"sealing {folder.name}"):
                if first:
                    made_by = {"processes": self.args.world_size, "strategy": self.settings.strategy}
                    checkpoints.seal(folder, step=step, **made_by)
                    checkpoints.prune(out, self.settings.keep_checkpoints)
        except Exception as error:
            if first:
                shutil.rmtree(folder, ignore_errors=True)  # its space may be what the log needs to say so
            raise disk_full(error, out) or error from error


class _Epochs(TrainerCallback):
    """Tells the order which epoch it is: accelerate does not, where it resumes in the middle of one with several processes."""

    def __init__(self, order: ImageOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose the epoch's order."""
        self.order.set_epoch(int(state.epoch or 0))


def disk_full(error: BaseException, out: Path) -> UserError | None:
    """The sentence for a write that failed for want of space; None where it failed for another reason.

    Each library has its own words: torch's writer says nothing of the disk, but only that a file is shorter than it should be.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    words = str(error)
    full = (
        (isinstance(error, OSError) and error.errno in numbers)
        or (isinstance(error, SafetensorError) and any(f"os error {number}" in words for number in numbers))
        or (isinstance(error, RuntimeError) and ("inline_container" in words or "PytorchStreamWriter" in words))
    )
    if not full:
        return None
    return UserError(
        f"The disk of {out} is full (or its quota is used up). The last whole checkpoint there is as it was: free some "
        f"space and start again to go on from it."
    )


def training_arguments(
    settings: TrainSettings, out: Path, questions: int, batch: int, accumulation: int
) -> TrainingArguments:
    """The HF Trainer's arguments; making them joins the processes of a distributed training.

    Args:
        settings: hyper-parameters.
        out: takes the checkpoints.
        questions: size of the training split.
        batch: questions in one step on one device.
        accumulation: steps whose gradients are summed before the weights change.
    """
    cpu = not torch.cuda.is_available()
    precision = precision_of(torch.device("cpu" if cpu else "cuda"), settings.precision)
    several = distributed.count() > 1
    steps = math.ceil(questions / (batch * distributed.count() * accumulation)) * settings.epochs
    zero = settings.strategy.startswith("zero")
    arguments = TrainingArguments(
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
        ddp_backend="gloo" if cpu and several else None,
        ddp_find_unused_parameters=False if several else None,
        deepspeed=str(DEEPSPEED / f"{settings.strategy}.json") if zero else None,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.eval_steps,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
        eval_strategy="no",  # by logits it fills the memory; ValidationCallback answers instead
        # Not persistent: those draw other random numbers in a second epoch than none, and after a resumption.
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    # One process has one GPU. Left alone, the Trainer would spread a batch over all that it sees, and a batch of images
    # with their questions cannot be cut by rows.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
