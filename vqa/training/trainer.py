"""The HF Trainer with three changes: an image's questions stay together, checkpoints are sealed, and a loss that becomes NaN ends
the training before it reaches a checkpoint."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vqa import distributed
from vqa.dataset import ImageOrder, VQADataset
from vqa.inference.answerer import precision_of
from vqa.settings import TrainSettings
from vqa.training import checkpoints
from vqa.training.errors import disk_full, diverged

DEEPSPEED = Path(__file__).parent / "deepspeed"


class LoraTrainer(Trainer):
    """See the module.

    Args:
        settings: hyper-parameters; `training_arguments` derives the Trainer's own arguments from them.
        options: arguments of `transformers.Trainer`.
    """

    def __init__(self, settings: TrainSettings, **options: Any) -> None:
        super().__init__(**options)
        assert isinstance(self.train_dataset, VQADataset)
        self.settings = settings
        self.order = ImageOrder(self.train_dataset.examples, settings.seed)
        self.add_callback(_Epochs(self.order))
        self.waited = 0.0  # seconds spent waiting for batches
        # Our forward takes **kwargs, from which the Trainer concludes that the loss is already divided by the items of all
        # accumulated batches. It is a mean over its own batch, so the Trainer has to average.
        self.model_accepts_loss_kwargs = False

    def require_finite(self) -> None:
        """Check, on every rank, the losses since the last log line and all trained weights.

        Raises:
            UserError: one of them is infinite or NaN.
        """
        # ds_tensor is this rank's partition under ZeRO-3.
        watched = [self._tr_loss] + [getattr(p, "ds_tensor", p) for p in self.model.parameters() if p.requires_grad]
        bad = not all(bool(torch.isfinite(tensor).all()) for tensor in watched)
        if distributed.any_rank(bad, self.args.device):
            raise diverged(self.state.global_step, self.args.learning_rate)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of the next step. Counts the seconds spent waiting for them."""
        began = time.perf_counter()
        found = super().get_batch_samples(*arguments)
        self.waited += time.perf_counter() - began
        return found

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """The order that keeps an image's questions together."""
        return self.order

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, and write its manifest last.

        Raises:
            UserError: the loss is NaN, or the disk is full. Earlier checkpoints stay as they were.
        """
        self.require_finite()
        out, step = Path(self.args.output_dir), self.state.global_step
        folder = out / f"checkpoint-{step}"
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(folder, ignore_errors=True)  # left by an attempt that was killed
        distributed.wait_for_all()
        try:
            with distributed.raise_together(self.args.device, f"saving {folder.name}"):
                super()._save_checkpoint(model, trial)
            with distributed.raise_together(self.args.device, f"sealing {folder.name}"):
                if first:
                    strategy = self.settings.strategy
                    checkpoints.seal(folder, step=step, processes=self.args.world_size, strategy=strategy)
                    checkpoints.prune(out, self.settings.keep_checkpoints)
        except Exception as error:
            if first:
                shutil.rmtree(folder, ignore_errors=True)  # frees the space that logging this error may need
            raise disk_full(error, out) or error from error


class _Epochs(TrainerCallback):
    """Tells the order its epoch. accelerate fails to when several processes resume in the middle of an epoch."""

    def __init__(self, order: ImageOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch."""
        self.order.set_epoch(int(state.epoch or 0))


def training_arguments(
    settings: TrainSettings, out: Path, questions: int, batch: int, accumulation: int
) -> TrainingArguments:
    """The HF Trainer's arguments. Constructing them joins the process group of a distributed training.

    Args:
        settings: hyper-parameters.
        out: folder of the checkpoints.
        questions: size of the training split.
        batch: questions per batch on one device.
        accumulation: batches per optimizer step.
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
        logging_nan_inf_filter=False,  # the default hides NaN losses
        eval_strategy="no",  # the Trainer's own keeps all logits in memory; ValidationCallback answers questions instead
        # Workers are not persistent: those draw other random numbers in later epochs and after resuming.
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    # One GPU per process. Otherwise the Trainer wraps the network in DataParallel, which splits every tensor by rows; images
    # and questions have different numbers of rows.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
