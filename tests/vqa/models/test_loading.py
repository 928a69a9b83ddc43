"""What cannot be loaded is named, and nothing is filled up with random weights: not the base, not the adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, ViltForMaskedLM

from data_prep.outcomes import UserError
from tests.vqa.tiny_models import make_model
from vqa.models import known_models
from vqa.models.base import model_class
from vqa.models.lora import apply_lora_to_model, load_adapter
from vqa.settings import LoraSettings, ModelSettings

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders blip, vilt and adapter (of blip), to be copied and damaged."""
    folder = tmp_path_factory.mktemp("sound")
    for kind in ("blip", "vilt"):
        make_model(kind, folder / kind)
    apply_lora_to_model(make_model("blip", folder / "blip"), LoraSettings(r=2)).net.save_pretrained(folder / "adapter")
    return folder


def load(kind: str, weights: Path) -> None:
    model_class(kind).load(ModelSettings(kind=kind, weights=str(weights)))


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:5000])


def without(pattern: str) -> Damage:
    def remove(folder: Path) -> None:
        for file in list(folder.glob(pattern)):
            file.unlink()

    return remove


def changed(name: str, **values: object) -> Damage:
    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | values))

    return change


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("kind", ["blip", "vilt"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut("model.safetensors"), "Cannot load a model from the folder"),
        (without("model.safetensors"), "Cannot load a model from the folder"),
        (without("*processor*"), "image processor"),
        (without("tok*"), "no tokenizer that fits its weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "Cannot load a model from the folder"),
    ],
    ids=["weights cut", "no weights", "no image processor", "no tokenizer", "torn config"],
)
def test_a_folder_that_is_not_whole_is_named_with_what_is_wrong(
    kind: str, damage: Damage, words: str, sound: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound / kind, tmp_path / "model"))
    load(kind, folder)
    damage(folder)
    with pytest.raises(UserError, match=words) as refused:
        load(kind, folder)
    assert str(folder) in str(refused.value)


def test_weights_of_another_model_are_refused_instead_of_filled_up_at_random(sound: Path, tmp_path: Path) -> None:
    captions, words = (Path(shutil.copytree(sound / kind, tmp_path / kind)) for kind in ("blip", "vilt"))
    BlipForConditionalGeneration(make_model("blip", sound / "blip").net.config).save_pretrained(captions)
    ViltForMaskedLM(make_model("vilt", sound / "vilt").net.config).save_pretrained(words)
    for kind, folder in (("blip", sound / "vilt"), ("vilt", sound / "blip"), ("blip", captions), ("vilt", words)):
        with pytest.raises(UserError, match="weights of another model"):
            load(kind, folder)


def test_an_unknown_kind_is_answered_with_the_kinds_that_the_folder_holds() -> None:
    with pytest.raises(UserError, match=r"no kind of model 'vlit'\. Did you mean 'vilt'\? Known: blip,.* vilt"):
        model_class("vlit")
    assert not {"base", "lora", "attention", "tiny"} & set(known_models())


def test_a_configuration_of_another_size_than_the_weights_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound / "vilt", tmp_path / "vilt"))
    changed("config.json", hidden_size=48)(folder)
    with pytest.raises(UserError, match="another model or size"):
        load("vilt", folder)


def test_a_tokenizer_with_more_words_than_the_weights_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound / "blip", tmp_path / "blip"))
    tokenizer = make_model("blip", sound / "blip").processor.tokenizer
    tokenizer.add_tokens([f"extra{number}" for number in range(10)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="no tokenizer that fits its weights"):
        load("blip", folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut("adapter_model.safetensors"), "does not fit"),
        (without("adapter_model.safetensors"), "the copy may be incomplete"),
        (pickled, "could run any code"),
        (without("adapter_config.json"), "holds no adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "does not fit"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "does not fit"),
        (changed("adapter_config.json", peft_type="IA3"), "does not fit"),
        (changed("adapter_config.json", r=3), "does not fit"),
        (changed("adapter_config.json", target_modules=["query"]), "trained on another base"),
    ],
    ids=["cut", "no weights", "pickle", "no config", "torn config", "a list", "IA3", "other rank", "other layers"],
)
def test_an_adapter_that_is_not_whole_is_named_with_what_is_wrong(
    damage: Damage, words: str, sound: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound / "adapter", tmp_path / "adapter"))
    damage(folder)
    with pytest.raises(UserError, match=words) as refused:
        load_adapter(make_model("blip", sound / "blip"), folder)
    assert str(folder) in str(refused.value)
