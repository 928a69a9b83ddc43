"""What training promises: it learns, says how it goes, keeps the best, and stops clearly when it cannot go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file

from data_prep.outcomes import UserError
from tests.vqa.rounding import PROBABILITY
from tests.vqa.training_data import Material, checkpoint_steps, log, make_material, outcome, quick, write_splits
from vqa import distributed
from vqa.dataset import ImageOrder, VQADataset
from vqa.inference import saved_model
from vqa.inference.answerer import precision_of
from vqa.inference.samples import evaluate_on_samples, loss_on_samples
from vqa.models.base import model_class
from vqa.models.blip import ImageOnceBlip
from vqa.models.lora import load_adapter
from vqa.models.tiny import Pretraining, make_tiny_model, pretrain
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings, TrainSettings
from vqa.training import checkpoints
from vqa.training import train as training
from vqa.training.train import divided


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    torch.set_num_threads(1)
    return make_material(tmp_path_factory.mktemp("material"))


def train(
    material: Material,
    out: Path,
    settings: TrainSettings | None = None,
    model: ModelSettings | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train the tiny model in this process."""
    training.train(
        "tiny",
        model or material.model(),
        settings or quick(),
        data=material.data,
        image_root=material.images,
        out=out,
        stop=stop,
    )
    return out


@pytest.fixture(scope="module")
def trained(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed."""
    return train(material, tmp_path_factory.mktemp("trained"))


# Learning


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blip", "vilt"])
def test_tiny_model_overfits_to_every_answer_right(kind: str, material: Material, tmp_path: Path) -> None:
    """The base was taught a wrong answer to each question; LoRA where it is by default teaches the right one."""
    answers = {"color": ["red", "green", "blue", "yellow"], "shape": ["circle", "square"]}

    def wrong(question_type: str, answer: str) -> str:
        known = answers[question_type]
        return known[(known.index(answer) + 1) % len(known)]

    base = tmp_path / "base"
    make_tiny_model(kind, base, [text for e in material.examples for text in (e.question, e.answer)])
    taught = [dataclasses.replace(e, answer=wrong(e.question_type, e.answer)) for e in material.examples]
    pretrain(base, kind, taught, material.images, Pretraining(epochs=300, batch_size=8))
    model = material.model(kind=kind, weights=str(base), batch_size=8, lora=LoraSettings(dropout=0.0))

    def share(adapter: Path | None) -> float:
        made = model_class(kind)
        loaded = made.load(model, made.adapter_answers(adapter) if adapter else ())
        if adapter:
            load_adapter(loaded, adapter)
        adapted = adapter is not None
        rows = evaluate_on_samples(loaded, material.examples, material.images, EvaluateSettings(), adapted=adapted)
        return sum(row.right for row in rows) / len(rows)

    assert share(None) < 0.5
    settings = quick(epochs=60, learning_rate=5e-3, eval_steps=20, validation_images=16, schedule="cosine")
    train(material, tmp_path / "out", settings, model)
    assert share(tmp_path / "out" / "adapter") == 1.0


@pytest.mark.parametrize(("epoch", "seed", "same"), [(0, 42, True), (1, 42, False), (0, 43, False)])
def test_order_of_questions_is_a_function_of_seed_and_epoch(
    epoch: int, seed: int, same: bool, material: Material
) -> None:
    first, other = ImageOrder(material.examples, 42), ImageOrder(material.examples, seed)
    other.set_epoch(epoch)
    assert (list(first) == list(other)) == same
    assert sorted(other) == list(range(len(material.examples))), "every question once"
    images = [material.examples[index].image_path for index in other]
    assert all(left == right for left, right in zip(images[::2], images[1::2], strict=True)), "an image's together"


@pytest.mark.parametrize("workers", [0, 1])
def test_same_seed_gives_the_same_adapter(workers: int, material: Material, trained: Path, tmp_path: Path) -> None:
    train(material, tmp_path, quick(workers=workers))
    assert outcome(tmp_path) == outcome(trained)
    assert [line["loss"] for line in log(tmp_path)] == [line["loss"] for line in log(trained)]


# Saying how it goes


def test_log_has_loss_rate_gradient_speed_and_memory_of_every_step(trained: Path) -> None:
    lines = log(trained)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["max_steps"] == 12 for line in lines)
    assert [line["learning_rate"] for line in lines] == pytest.approx([2e-3 * (1 - n / 12) for n in range(12)])
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["grad_norm"] > 0 and line["samples_per_second"] > 0 for line in lines)
    assert all(0 < line["waiting_share"] < 1 for line in lines)
    assert all(1e8 < line["memory_bytes"] < 1e11 for line in lines)
    assert lines[-1]["epoch"] == 3


def test_learning_rate_warms_up_and_then_follows_the_schedule(material: Material, tmp_path: Path) -> None:
    train(material, tmp_path, quick(schedule="cosine", warmup_share=0.25))
    shares = [line["learning_rate"] / 2e-3 for line in log(tmp_path)]
    falling = [0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, *falling])


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_precision_is_what_the_gpu_supports(
    capability: tuple[int, int], chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 is 7.5; a CPU computes in fp32 unless it is told otherwise."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_of(torch.device("cuda"), "auto") == chosen
    assert precision_of(torch.device("cpu"), "auto") == torch.float32


def test_training_in_half_precision_keeps_what_it_trains_in_fp32(material: Material, tmp_path: Path) -> None:
    train(material, tmp_path, quick(precision="bf16", epochs=0.75))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_validation_logs_questions_answers_and_truths_of_one_fixed_sample(material: Material, trained: Path) -> None:
    lines = log(trained, "validation.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    truths = {example.id: (example.question, example.answer) for example in material.validation}
    for line in lines:
        rows = line["answers"]
        assert len(rows) == line["questions"] == 8  # four images with both of their questions
        assert len({row["id"].partition("-")[0] for row in rows}) == 4
        assert line["exact_match"] == sum(row["right"] for row in rows) / 8
        assert all((row["question"], row["truth"]) == truths[row["id"]] for row in rows)
        assert all(row["right"] == (row["text"] == row["truth"]) for row in rows)
    assert len({tuple(row["id"] for row in line["answers"]) for line in lines}) == 1
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_validation_loss_is_that_of_training_without_dropout(
    material: Material,
) -> None:
    loaded = model_class("blip").load(material.model())
    examples = material.examples[:4]
    batch = VQADataset(examples, material.images, loaded.processor).__getitems__(range(4))
    with torch.inference_mode():
        expected = float(loaded.net.eval()(**batch)["loss"])
    loaded.net.train()
    assert loss_on_samples(loaded, examples, material.images, EvaluateSettings()) == pytest.approx([expected] * 4)
    assert loaded.net.training


def test_each_training_of_a_process_has_its_own_tensorboard_log(
    material: Material, trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="without tensorboard nothing is logged there")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(material, tmp_path, quick(epochs=0.75))
    for out in (trained, tmp_path):
        events = EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        expected = {line["step"]: line["loss"] for line in log(out)}
        seen = {event.step: event.value for event in events.Scalars("train/loss")}
        assert seen == pytest.approx(expected)
        assert {"train/grad_norm", "train/learning_rate"} <= set(events.Tags()["scalars"])


# Keeping the best, and stopping early


def test_adapter_is_the_first_of_the_best_validations(trained: Path) -> None:
    lines = log(trained, "validation.jsonl")
    best = max(line["exact_match"] for line in lines)
    step = next(line["step"] for line in lines if line["exact_match"] == best)
    assert step < 12, "else this would not tell the best from the last"
    assert orjson.loads((trained / "best.json").read_bytes())["step"] == step
    adapter, final = outcome(trained)
    assert adapter == (trained / f"best-{step}" / "adapter_model.safetensors").read_bytes()
    assert adapter != final
    assert [path.name for path in trained.glob("best-*")] == [f"best-{step}"], "others are not kept"


def test_card_says_what_the_adapter_was_made_of_and_how_good_it_is(material: Material, trained: Path) -> None:
    card = (trained / "adapter" / "README.md").read_text()
    best = orjson.loads((trained / "best.json").read_bytes())
    assert f"{best['questions']} validation questions: {best['exact_match']:.3f} (step {best['step']}" in card
    assert best["questions"] == 2 * 4, "four images, with both of their questions"
    assert "r 16, alpha 32, dropout 0.1" in card
    assert "3 epochs, batch 4 x 1, learning rate 0.002 (linear), weight decay 0.01, seed 42" in card
    done = subprocess.run(["sha256sum", material.data / "train.jsonl"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] in card
    assert "generated by gemini-x" in card and "- Read the terms." in card and "CC BY 4.0" in card
    assert not list((trained / "adapter").glob("*.bin")), "no pickles are handed on"


def test_training_stops_when_validation_gets_no_better(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(material, tmp_path, quick(patience=2, learning_rate=1e-9))
    assert [line["step"] for line in log(tmp_path, "validation.jsonl")] == [3, 6, 9]
    assert "no better exact match for 2 validations, stopping" in capsys.readouterr().out
    assert log(tmp_path)[-1]["step"] == 9
    adapter, _ = outcome(tmp_path)

    shutil.rmtree(tmp_path / "adapter")  # killed before it was put into its place
    train(material, tmp_path, quick(patience=2, learning_rate=1e-9))
    assert len(log(tmp_path, "validation.jsonl")) == 3, "it does not go on after all"
    assert outcome(tmp_path)[0] == adapter


@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_stopped_early_takes_no_step_more_when_it_is_resumed(
    material: Material, tmp_path: Path, seed: int
) -> None:
    settings = quick(patience=1, eval_steps=1, learning_rate=5e-3, validation_images=16, epochs=10, seed=seed)
    train(material, tmp_path, settings)
    adapter, _ = outcome(tmp_path)
    validations = len(log(tmp_path, "validation.jsonl"))
    shutil.rmtree(tmp_path / "adapter")
    train(material, tmp_path, settings)
    assert outcome(tmp_path)[0] == adapter
    assert len(log(tmp_path, "validation.jsonl")) == validations


def test_a_training_from_the_beginning_forgets_the_best_of_an_earlier_one(material: Material, tmp_path: Path) -> None:
    train(material, tmp_path, quick(epochs=1.5, learning_rate=5e-3, validation_images=16))
    earlier, _ = outcome(tmp_path)
    for folder in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(folder)
    train(material, tmp_path, quick(eval_steps=12, learning_rate=1e-9, validation_images=16))
    assert orjson.loads((tmp_path / "best.json").read_bytes())["step"] == 12
    assert outcome(tmp_path)[0] != earlier


def test_training_to_the_end_does_not_claim_to_stop_early(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(material, tmp_path, quick(epochs=0.75))
    assert "stopping" not in capsys.readouterr().out


# A loss that is no number


def poison(monkeypatch: pytest.MonkeyPatch, first_step: int, spoil: Callable[[Any, Any], Any]) -> None:
    """From a step on, spoil the loss: ``spoil(network, loss)``."""
    whole = ImageOnceBlip.forward
    calls = 0

    def forward(self: ImageOnceBlip, **batch: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        found = whole(self, **batch)
        return found | {"loss": spoil(self, found["loss"])} if calls >= first_step else found

    monkeypatch.setattr(ImageOnceBlip, "forward", forward)


def nan_gradient(net: Any, loss: Any) -> Any:
    """The same loss, whose gradient is not a number: the slope of a root at 0."""
    weight = next(parameter for parameter in net.parameters() if parameter.requires_grad)
    return loss + ((weight * 0).sum() ** 2).sqrt()


@pytest.mark.parametrize(
    ("logging_steps", "spoil"),
    [
        pytest.param(100, lambda net, loss: loss * float("nan"), id="NaN between log lines"),
        pytest.param(1, lambda net, loss: loss * float("inf"), id="infinite", marks=pytest.mark.slow),
        pytest.param(1, lambda net, loss: loss * float("nan"), id="NaN in a log line", marks=pytest.mark.slow),
        pytest.param(1, nan_gradient, id="NaN in the gradient alone"),
    ],
)
def test_a_nan_loss_stops_training_before_it_reaches_a_checkpoint(
    logging_steps: int,
    spoil: Any,
    material: Material,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = quick(logging_steps=logging_steps)
    with monkeypatch.context() as patched:
        poison(patched, 5, spoil)
        with pytest.raises(UserError, match=r"last good checkpoint is kept. Lower train\.learning_rate"):
            train(material, tmp_path, settings)
    assert checkpoint_steps(tmp_path) == [3]
    assert checkpoints.problem(tmp_path / "checkpoint-3") == ""
    assert [line["step"] for line in log(tmp_path, "validation.jsonl")] == [3]
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-3"]
    assert not (tmp_path / "adapter").exists()
    train(material, tmp_path, settings)
    assert outcome(tmp_path) == outcome(trained), "the checkpoint was good"


def test_learning_rate_that_blows_the_weights_up_is_named(material: Material, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Lower train.learning_rate \(now 1e\+25\)"):
        train(material, tmp_path, quick(learning_rate=1e25))
    assert not (tmp_path / "adapter").exists()


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB: room for a few checkpoints of the tiny model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def free(disk: Path) -> int:
    """Bytes that can still be written."""
    figures = os.statvfs(disk)
    return figures.f_bavail * figures.f_frsize


@pytest.mark.parametrize("left", [0, 0.03, 0.5], ids=["nothing", "an adapter's beginning", "half a checkpoint"])
def test_full_disk_stops_clearly_with_the_last_checkpoint_whole(
    left: float, material: Material, trained: Path, small_disk: Path
) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    steps = 0

    def fill() -> bool:
        nonlocal steps
        steps += 1
        if steps == 4:
            checkpoint = sum(path.stat().st_size for path in (out / "checkpoint-3").iterdir())
            with ballast.open("wb") as file:
                file.write(bytes(free(small_disk) - int(left * checkpoint)))
        return False

    with pytest.raises(UserError, match=r"disk of .* is full .* free some space and start again"):
        train(material, out, stop=fill)
    ballast.unlink()
    assert checkpoints.newest_valid(out, processes=1, strategy="ddp") == out / "checkpoint-3"
    train(material, out)
    assert outcome(out) == outcome(trained)


# Memory


@pytest.mark.parametrize(
    ("before", "after"),
    [((4, 4), (2, 8)), ((2, 8), (1, 16)), ((8, 2), (4, 4)), ((6, 1), (3, 2)), ((3, 2), (1, 6)), ((5, 4), (2, 10))],
)
def test_smaller_batch_has_the_same_effective_batch(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert divided(*before) == after


def scarce(monkeypatch: pytest.MonkeyPatch, most: int) -> list[weakref.ref[Any]]:
    """Raise what CUDA raises where a step has more questions than ``most``; a reference to each network that was tried."""
    whole = ImageOnceBlip.forward
    tried: list[weakref.ref[Any]] = []

    def forward(self: ImageOnceBlip, **batch: Any) -> dict[str, Any]:
        if not tried or tried[-1]() is not self:
            tried.append(weakref.ref(self))
        if len(batch["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return whole(self, **batch)

    monkeypatch.setattr(ImageOnceBlip, "forward", forward)
    return tried


def test_batch_that_does_not_fit_is_divided_and_the_memory_of_the_attempt_freed(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(material, tmp_path / "small", model=material.model(batch_size=2, gradient_accumulation=4))
    tried = scarce(monkeypatch, 2)
    train(material, tmp_path / "found", model=material.model(batch_size=8))
    assert outcome(tmp_path / "found") == outcome(tmp_path / "small")
    said = capsys.readouterr().out
    assert "continuing with batches of 4 x 2" in said
    assert "continuing with batches of 2 x 4" in said
    assert "batch 2 x 4" in (tmp_path / "found" / "adapter" / "README.md").read_text()
    assert len(tried) == 3
    assert tried[0]() is None, "the first attempt's network is gone"
    assert tried[1]() is None


def test_gpu_too_small_for_one_question_is_named(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce(monkeypatch, 0)
    with pytest.raises(UserError, match="tiny does not fit on this GPU even with batch_size 1"):
        train(material, tmp_path)


def test_several_processes_are_told_the_batch_that_has_the_same_effect(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = scarce(monkeypatch, 2)
    monkeypatch.setattr(distributed, "count", lambda: 2 if tried else 1)  # no second process is needed to find out
    with pytest.raises(UserError, match=r"models\.tiny\.batch_size to 2 and models\.tiny\.gradient_accumulation to 2"):
        train(material, tmp_path)


def test_validation_halves_its_batch_where_memory_is_scarce(
    material: Material, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_adapter(model_class("blip").load(material.model()), trained / "adapter")
    settings = EvaluateSettings(batch_size=16)
    expected = evaluate_on_samples(model, material.examples, material.images, settings)
    assert [row.id for row in expected] == [example.id for example in material.examples]
    whole, sizes = ImageOnceBlip.encode_questions, list[int]()

    def encode_questions(self: ImageOnceBlip, images: Any, input_ids: Any, *rest: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, images, input_ids, *rest)

    monkeypatch.setattr(ImageOnceBlip, "encode_questions", encode_questions)
    found = evaluate_on_samples(model, material.examples, material.images, settings)
    assert sizes == [16, 8, 4, 4, 4, 4]
    assert [row.text for row in found] == [row.text for row in expected]
    assert [row.confidence for row in found] == pytest.approx([row.confidence for row in expected], rel=PROBABILITY)


# Data


def test_empty_training_split_is_named(material: Material, tmp_path: Path) -> None:
    empty = dataclasses.replace(material, data=write_splits(tmp_path / "data", [], material.examples))
    with pytest.raises(UserError, match=r"train\.jsonl is empty: there is nothing to train on"):
        train(empty, tmp_path / "out")


def test_a_dataset_with_leaks_or_missing_images_is_refused_before_training(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LoraTrainer", pytest.fail)
    leak = dataclasses.replace(material.validation[0], item_id=material.examples[0].item_id)
    lost = dataclasses.replace(material.validation[2], image_path="lost.png")
    bad = dataclasses.replace(material, data=write_splits(tmp_path / "data", material.examples, [leak, lost]))
    with pytest.raises(UserError, match=rf"2 problems: .*lost\.png.*; item {leak.item_id} is in both train and val"):
        train(bad, tmp_path / "out")


def test_every_image_is_decoded_once_per_batch(material: Material) -> None:
    loaded = model_class("blip").load(material.model())
    dataset = VQADataset(material.examples, material.images, loaded.processor)
    batch = dataset.__getitems__([0, 1, 2, 3])
    assert len(batch["pixels"]) == 2
    assert batch["image_of_question"].tolist() == [0, 0, 1, 1]


# The rendered example


def test_each_validation_answers_a_rendered_example(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(material, tmp_path / "out", quick(epochs=1, eval_steps=2))
    validations = log(out, "validation.jsonl")
    assert len(validations) == 2 and all(isinstance(line["synthetic"], str) for line in validations)
    said = capsys.readouterr().out
    assert said.count("What color is the circle? (rendered, red) → ") == 2
    assert "the saved adapter answers 'What color is the circle?'" in said


@pytest.mark.parametrize("answer", ["", "error"])
def test_a_saved_adapter_that_does_not_answer_is_an_error_at_once(
    answer: str, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = [{"id": "s", "question": "What?", "truth": "red", "text": "", "confidence": 0.5, "right": False}]
    code = f"print({json.dumps(json.dumps(reply))})" if answer == "" else "raise OSError('weights are gone')"
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\n{code}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(saved_model.sys, "executable", str(fake))
    monkeypatch.setattr(training, "FEW_STEPS", 0)
    words = "gives no answer to 'What\\?'" if answer == "" else "weights are gone"
    with pytest.raises(UserError, match=f"The adapter in .* does not work: .*{words}"):
        train(material, tmp_path / "out", quick(epochs=1))
    assert not (tmp_path / "out/adapter").exists()
