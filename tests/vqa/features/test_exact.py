"""Features from a store change nothing: neither loss nor gradients, adapters and answers, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.vqa.training_data import Material, make_material, quick
from vqa.inference.answerer import Answerer, autocast
from vqa.models.base import Batch, Model, model_class
from vqa.models.lora import apply_lora_to_model
from vqa.settings import EvaluateSettings, FeatureSettings, LoraSettings, ModelSettings
from vqa.training.train import train

TEXT = LoraSettings(targets=["query", "value"])


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material") / "m")


def settings_of(material: Material, folder: Path | None, lora: LoraSettings = TEXT) -> ModelSettings:
    return material.model(lora=lora, features=FeatureSettings(folder=str(folder)) if folder else None)


def images_encoded(model: Model) -> list[int]:
    """The number of images of each call of the tower, from now on."""
    counts: list[int] = []
    model.net.get_base_model().vision_model.register_forward_hook(
        lambda module, args, kwargs, out: counts.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return counts


def model_for_training(material: Material, folder: Path | None, lora: LoraSettings = TEXT) -> Model:
    torch.manual_seed(0)
    settings = settings_of(material, folder, lora)
    model = apply_lora_to_model(model_class("blip").load(settings), lora)
    if settings.features is not None:
        model.store_features(settings.features)
    model.net.train()
    return model


def batch_of(material: Material, model: Model) -> Batch:
    from vqa.dataset import VQADataset

    return VQADataset(material.examples, material.images, model.processor).__getitems__(range(6))


def step(model: Model, batch: Batch, precision: str) -> list[torch.Tensor]:
    """The loss and all gradients."""
    torch.manual_seed(1)  # of dropout
    model.net.zero_grad()
    with autocast(torch.device("cpu"), precision):
        loss = model.net(**batch)["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_gradients_are_the_same_fresh_written_and_read(
    material: Material, tmp_path: Path, precision: str
) -> None:
    plain, storing = model_for_training(material, None), model_for_training(material, tmp_path)
    batch = batch_of(material, plain)
    fresh, written = step(plain, batch, precision), step(storing, batch, precision)
    reading = model_for_training(material, tmp_path)
    step(reading, batch, precision)
    encoded = images_encoded(reading)
    read = step(reading, batch, precision)
    assert encoded == []
    assert len(fresh) > 1
    for one, two, three in zip(fresh, written, read, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_an_adapter_trained_with_a_store_is_the_same_file(material: Material, tmp_path: Path) -> None:
    adapters = []
    for name, folder in (("without", None), ("first", tmp_path / "f"), ("second", tmp_path / "f")):
        out = tmp_path / name
        model = settings_of(material, folder)
        train("tiny", model, quick(), data=material.data, image_root=material.images, out=out)
        adapters.append((out / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1] == adapters[2]
    (store,) = (tmp_path / "f").iterdir()
    assert len(list(store.iterdir())) == 1  # the second run found everything there and wrote nothing


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answers_are_the_same_with_a_store(material: Material, tmp_path: Path, precision: str) -> None:
    found = []
    for folder in (None, tmp_path, tmp_path):
        settings = EvaluateSettings(precision=precision)  # type: ignore[arg-type]
        answerer = Answerer(settings_of(material, folder), {"base": None}, settings, material.images)
        model = answerer.model
        found.append(answerer.answer_batch({k: v for k, v in batch_of(material, model).items() if "label" not in k}))
    assert found[0] == found[1] == found[2]


def test_a_tower_that_an_adapter_reaches_has_no_store(material: Material, tmp_path: Path) -> None:
    model = model_for_training(material, tmp_path, LoraSettings(targets=["query", "qkv"]))
    step(model, batch_of(material, model), "fp32")
    assert not list(tmp_path.iterdir())


def test_other_weights_have_another_store(material: Material, tmp_path: Path) -> None:
    for shift in (0.0, 0.5):
        model = model_class("blip").load(settings_of(material, None))
        with torch.no_grad():
            model.net.vision_model.post_layernorm.bias += shift
        model.store_features(FeatureSettings(folder=str(tmp_path)))
        with torch.inference_mode():
            model.encode(batch_of(material, model))
    assert len(list(tmp_path.iterdir())) == 2


def test_targets_are_a_pattern_or_all_linear_without_what_is_excluded(material: Material) -> None:
    def reached(lora: LoraSettings) -> set[str]:
        model = apply_lora_to_model(model_class("blip").load(material.model()), lora)
        return {name for name, module in model.net.get_base_model().named_modules() if hasattr(module, "lora_A")}

    pattern = reached(LoraSettings(targets=r"text_decoder.*crossattention.*(query|value)"))
    assert pattern
    assert all("text_decoder" in name and "crossattention" in name for name in pattern)
    every = reached(LoraSettings(targets="all-linear"))
    assert any("vision_model" in name for name in every)
    text = reached(LoraSettings(targets="all-linear", exclude=r"vision_model.*"))
    assert text == {name for name in every if "vision_model" not in name}


def test_a_trained_adapter_loads_without_this_project(material: Material, tmp_path: Path) -> None:
    train("tiny", settings_of(material, None), quick(), data=material.data, image_root=material.images, out=tmp_path)
    load = "import sys; from peft import AutoPeftModel; print(type(AutoPeftModel.from_pretrained(sys.argv[1]).base_model.model))"
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", load, str(tmp_path / "adapter")]
    done = subprocess.run(
        command, cwd="/", env=alone | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert "transformers.models.blip.modeling_blip.BlipForQuestionAnswering" in done.stdout
