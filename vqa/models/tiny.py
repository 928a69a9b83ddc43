"""Models small enough to be trained in a minute on a CPU: for the demo, for tests, for a first run on one's own data.

They are real models of their kind in transformers' own format (weights, configuration, tokenizer, image processor in one
folder); only the sizes are small and the tokenizer is made on the spot from the words that it has to know.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from data_prep.records import Example
from vqa.models.base import model_class
from vqa.settings import ModelSettings

IMAGE_SIZE = 64
HIDDEN = 64
HEADS = 4
INIT_STD = 0.04  # wider than BERT's 0.02: so small a network learns sooner
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tiny_model(kind: str, folder: Path, texts: Iterable[str], *, seed: int = 0) -> Path:
    """Write an untrained tiny model of a kind into a folder.

    Args:
        kind: a model of this folder, whose file decides the sizes.
        folder: made if it is not there.
        texts: questions and answers whose words the tokenizer is to know.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model_class(kind).make_tiny(folder, _words(texts))
    return folder


def _words(texts: Iterable[str]) -> list[str]:
    """Whole words only: with pieces of words in the vocabulary, a model that is unsure answers with a piece."""
    return [*SPECIAL, *sorted({word for text in texts for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())})]


def bert_tokenizer(folder: Path, vocabulary: Sequence[str]) -> None:
    """Write a tokenizer of whole words, of which the first five are `SPECIAL`."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Pretraining:
    """How all weights of a tiny model are trained; the defaults are what the demo's model learns best with."""

    epochs: int = 5
    batch_size: int = 180
    """Questions a step: the nine about each of twenty images."""

    learning_rate: float = 0.002
    """AdamW's, for embeddings, biases and norms. It is the highest: one cycle (Smith 2018) rises for a tenth of the steps and
    falls to zero."""

    matrix_learning_rate: float = 0.012
    """`Muon`'s, for matrices. Three times as much and the model stays blind: it learns colors and little else."""

    seed: int = 0
    """Of the order."""


def pretrain(
    folder: Path,
    kind: str,
    examples: Sequence[Example],
    image_root: Path,
    settings: Pretraining | None = None,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> None:
    """Train all weights of the model in a folder on some examples, in place, so that "base" means something.

    Args:
        folder: what `make_tiny_model` wrote.
        kind: of the model.
        examples: questions with their answers.
        image_root: where their images are.
        settings: epochs, batches, learning rates.
        progress: called with step, steps and loss.
    """
    from torch.utils.data import DataLoader

    from vqa.dataset import ImageOrder, VQADataset, as_batch

    settings = settings or Pretraining()
    model = model_class(kind).load(ModelSettings(kind=kind, weights=str(folder)), [e.answer for e in examples])
    data = VQADataset(examples, image_root, model.processor, cache=True)
    order = ImageOrder(data.examples, settings.seed)
    loader = DataLoader(data, settings.batch_size, sampler=order, collate_fn=as_batch)
    steps = settings.epochs * len(loader)
    optimizers = _optimizers(model.net, settings)
    rise = max(0.1, 2.5 / (steps + 2))  # more than one step: torch divides by zero where it is exactly one
    schedules = [
        OneCycleLR(each, [group["lr"] for group in each.param_groups], steps, pct_start=rise, cycle_momentum=False)
        for each in optimizers
    ]
    model.net.train()
    step = 0
    for epoch in range(settings.epochs):
        order.set_epoch(epoch)
        for batch in loader:
            loss = model.net(**batch)["loss"]
            model.net.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            step += 1
            progress(step, steps, float(loss.detach()))
    model.net.eval()
    model.net.save_pretrained(folder)


def _optimizers(net: nn.Module, settings: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers, AdamW for the rest: tables of words and places, biases, norms."""
    tables = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in net.parameters():
        (matrices if parameter.dim() == 2 and id(parameter) not in tables else rest).append(parameter)
    adamw = torch.optim.AdamW(rest, lr=settings.learning_rate, betas=(0.9, 0.98))
    return [Muon(matrices, settings.matrix_learning_rate), adamw]


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (Jordan et al. 2024, "Muon"), in fp32 and for all matrices of a shape at once.

    On small transformers on a CPU it needs half of the steps of AdamW. torch has one from 2.9 on, which computes in bf16: slow
    on processors that have to emulate it.
    """

    MOMENTUM = 0.95
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic iteration that drives singular values toward 1
    ITERATIONS = 5

    def __init__(self, matrices: Sequence[nn.Parameter], learning_rate: float) -> None:
        super().__init__(matrices, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    of_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in of_shape.items():
                updates = self._orthogonal(torch.stack([self._momentum(matrix) for matrix in matrices]))
                size = group["lr"] * max(1, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.sub_(update, alpha=size)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        assert matrix.grad is not None
        mean: Tensor = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - self.MOMENTUM)
        return matrix.grad.lerp(mean, self.MOMENTUM)  # Nesterov's: a step ahead

    def _orthogonal(self, updates: Tensor) -> Tensor:
        """(N, R, C) in and out; singular values near 1."""
        a, b, c = self.NEWTON_SCHULZ
        tall = updates.shape[1] > updates.shape[2]
        x = updates.mT if tall else updates
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(self.ITERATIONS):
            square = x @ x.mT
            x = a * x + (b * square + c * square @ square) @ x
        return x.mT if tall else x
