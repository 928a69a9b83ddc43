"""The benchmark of a training step compares like with like: both sides compute the same, from the same questions."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks import training_step
from benchmarks.full_size import make_data
from benchmarks.measure import Comparison
from benchmarks.training_step import distinct, finished_rows, load_ours, load_theirs, our_trainer, their_trainer
from tests.vqa.rounding import BACKWARD, DEPTH, EPS, assert_same_but_for_rounding
from tests.vqa.tiny_models import noise_images
from vqa.dataset import VQADataset
from vqa.models.base import Batch, model_class
from vqa.models.tiny import make_tiny_model
from vqa.settings import ModelSettings, TrainSettings
from vqa.training.trainer import LoraTrainer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the words of the benchmark, with weights large enough that a mistake shows."""
    folder = tmp_path_factory.mktemp("step")
    _, _, examples = make_data(folder / "data", 4, 5)
    texts = [text for example in distinct(examples) for text in (example.question, example.answer)]
    made = make_tiny_model("blip", folder / "tiny", texts)
    net = model_class("blip").load(ModelSettings(weights=str(made))).net
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    net.save_pretrained(made)
    return made


def test_both_sides_have_the_same_loss_and_gradients_for_the_same_questions(weights: Path, tmp_path: Path) -> None:
    _, images, examples = make_data(tmp_path / "data", 2, 5)
    for path, image in zip(sorted(images.iterdir()), noise_images(), strict=False):
        image.save(path)  # noise, so that a question about the wrong one of them shows
    examples = distinct(examples)
    model = load_ours(weights)
    net = load_theirs(weights, model)
    ours = our_trainer(model, examples, images, (10, 1), tmp_path, TrainSettings(precision="fp32"))
    theirs = their_trainer(net, finished_rows(model, examples, images), ours.args)
    assert training_step.loss_of(ours, 10) == pytest.approx(training_step.loss_of(theirs, 10), rel=2 * DEPTH * EPS)

    def gradients(trainer: Any) -> dict[str, torch.Tensor]:
        trainer.current_gradient_accumulation_steps = 1
        batch = training_step.collated(trainer, range(10))
        trainer.training_step(trainer.model, batch)
        return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    mine, plain = gradients(ours), gradients(theirs)
    assert mine.keys() == plain.keys() and all("lora_" in name for name in mine)
    assert max(float(gradient.abs().max()) for gradient in mine.values()) > 1e-3
    for name, gradient in mine.items():
        assert_same_but_for_rounding(gradient, plain[name], BACKWARD)


def test_the_benchmark_of_speed_runs_from_end_to_end(weights: Path, tmp_path: Path) -> None:
    figures = training_step.measure_speed(weights, tmp_path, rounds=1, steps=1)
    assert figures["questions"] == 16
    losses = figures["loss of the same questions"]
    assert len(losses) == 4 and max(losses.values()) - min(losses.values()) < 2 * DEPTH * EPS * max(losses.values())
    assert sum(isinstance(value, Comparison) for value in figures.values()) == 3


class Watched(VQADataset):
    """Notes the questions of every batch."""

    shown: ClassVar[list[str]] = []  # replaced for the datasets of the trainers

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        self.shown.extend(self.examples[index].id for index in indices)
        return super().__getitems__(indices)


def test_the_benchmark_of_losses_trains_on_the_same_questions_in_both_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    make = training_step.our_trainer

    def watched(*arguments: Any) -> LoraTrainer:
        trainer = make(*arguments)
        data, shown = trainer.train_dataset, list[str]()
        assert isinstance(data, Watched)
        data.shown = shown  # type: ignore[misc]
        seen.append(shown)
        return trainer

    monkeypatch.setattr(training_step, "VQADataset", Watched)
    monkeypatch.setattr(training_step, "our_trainer", watched)
    figures = training_step.measure_losses(tmp_path / "losses", image_count=20, seeds=1, epochs=2, base_epochs=1)
    together, shuffled = seen
    assert sorted(together) == sorted(shuffled) and len(together) == 2 * 8 * 5

    def neighbors(ids: list[str]) -> int:
        """How many questions follow one about the same image."""
        return sum(a.split("-")[0] == b.split("-")[0] for a, b in pairwise(ids))

    assert neighbors(together) >= 2 * 8 * 4 > 2 * neighbors(shuffled)
    assert shuffled[:40] != shuffled[40:], "each epoch has an order of its own"
    curve = figures["held-out loss by questions seen"]
    assert curve[0]["kept together"] == curve[0]["shuffled"]
    assert curve[-1]["kept together"] != curve[-1]["shuffled"]
