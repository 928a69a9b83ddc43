"""Kind vlm trains, stops, resumes, merges and is read by plain libraries as the other kinds are."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from data_prep.outcomes import Interrupted
from tests.vqa.training.test_training import log, outcome
from tests.vqa.training_data import Material, make_material, quick, start_workers
from vqa.inference.samples import evaluate_on_samples
from vqa.inference.saved_model import merge_adapter
from vqa.models.lora import load_adapter
from vqa.models.tiny import Pretraining, make_tiny_model, pretrain
from vqa.models.vlm import Model
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings
from vqa.training.train import train


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    torch.set_num_threads(1)  # sums depend on it
    made = make_material(tmp_path_factory.mktemp("material"))
    texts = [text for e in made.examples for text in (e.question, e.answer)] + ["Answer in one word."]
    return replace(made, weights=make_tiny_model("vlm", made.weights.parent / "vlm", texts))


def settings_of(material: Material, accumulation: int = 1) -> ModelSettings:
    return material.model(kind="vlm", lora=LoraSettings(dropout=0.1), gradient_accumulation=accumulation)


def train_here(material: Material, out: Path, accumulation: int = 1, stop: Callable[[], bool] = lambda: False) -> None:
    model = settings_of(material, accumulation)
    train("tiny", model, quick(), data=material.data, image_root=material.images, out=out, stop=stop)


def test_a_training_that_was_stopped_ends_with_the_same_adapter(material: Material, tmp_path: Path) -> None:
    train_here(material, tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train_here(material, out, stop=lambda: len(log(out)) >= 5)
    train_here(material, out)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_adapter_and_merged_model_load_in_plain_libraries(material: Material, tmp_path: Path) -> None:
    train_here(material, tmp_path / "run")
    settings, adapter = settings_of(material), tmp_path / "run" / "adapter"
    ours = load_adapter(Model.load(settings), adapter)
    merged = AutoModelForImageTextToText.from_pretrained(merge_adapter(settings, adapter, tmp_path / "merged")).eval()
    base = AutoModelForImageTextToText.from_pretrained(material.weights)
    plain = PeftModel.from_pretrained(base, str(adapter)).eval()
    inputs = dict(ours.processor._processed(next(iter(_images(material))), "What color is the toy?"))  # type: ignore[attr-defined]
    with torch.no_grad():
        said = [net(**inputs).logits for net in (ours.net, merged, plain)]
        without = AutoModelForImageTextToText.from_pretrained(material.weights).eval()(**inputs).logits
    for other in said[1:]:
        torch.testing.assert_close(other, said[0], atol=1e-5, rtol=1e-5)
    assert not torch.equal(said[2], without), "the adapter changes something"


def _images(material: Material):  # type: ignore[no-untyped-def]
    from PIL import Image

    for file in sorted(material.images.glob("0*.png")):
        yield Image.open(file).convert("RGB")


@pytest.mark.slow
def test_what_can_be_learned_is_learned_to_100_percent(material: Material, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(material.weights, folder)
    pretrain(folder, "vlm", material.examples, material.images, Pretraining(epochs=120, batch_size=16))
    model = Model.load(ModelSettings(kind="vlm", weights=str(folder)))
    said = evaluate_on_samples(model, material.examples, material.images, EvaluateSettings())
    assert all(answer.right for answer in said)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_two_processes_train_as_one_does(strategy: str, material: Material, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds its CPU communication with g++, which is not here")
    train(
        "tiny",
        settings_of(material, 2).model_copy(update={"lora": LoraSettings(dropout=0.0)}),
        quick(),
        data=material.data,
        image_root=material.images,
        out=tmp_path / "alone",
    )
    model = settings_of(material).model_copy(update={"lora": LoraSettings(dropout=0.0)})
    workers = start_workers(2, material, tmp_path / "two", model, quick(strategy=strategy))
    ends = [worker.ended() for worker in workers]
    assert [code for code, _ in ends] == [0, 0], "\n".join(said for _, said in ends)
    files = [tmp_path / out / "adapter" / "adapter_model.safetensors" for out in ("alone", "two")]
    alone, two = (load_file(file) for file in files)
    assert alone.keys() == two.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=0)
