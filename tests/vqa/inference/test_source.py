"""What a person names is found, or refused at once with what would be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vqa.errors import ModelError
from vqa.inference.source import find_adapter, find_model


def make_adapter(folder: Path, library: str = "vqa.models.vilt", base: str = "owner/base") -> Path:
    folder.mkdir(parents=True)
    told = {"base_model_name_or_path": base, "auto_mapping": {"parent_library": library}}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def make_run(run: Path, *models: str) -> Path:
    run.mkdir()
    (run / "run.json").write_text("{}")
    for model in models:
        make_adapter(run / "6_train" / model / "adapter", f"vqa.models.{model}")
    return run


@pytest.mark.parametrize("library", ["vqa.models.vilt", "transformers.models.vilt.modeling_vilt"])
def test_an_adapter_says_its_kind_and_its_base(tmp_path: Path, library: str) -> None:
    adapter = make_adapter(tmp_path / "adapter", library)
    for named in (adapter, tmp_path):
        found = find_model(named)
        assert (found.model.kind, found.model.weights, found.adapter) == ("vilt", "owner/base", adapter)


def test_a_run_stands_for_its_adapter_and_one_with_several_asks_which(tmp_path: Path) -> None:
    assert find_adapter(make_run(tmp_path / "one", "vilt")).adapter == tmp_path / "one/6_train/vilt/adapter"
    both = make_run(tmp_path / "both", "vilt", "blip")
    with pytest.raises(ModelError, match="has the trained models blip, vilt"):
        find_model(both)
    assert find_model(both, model="blip").model.kind == "blip"
    with pytest.raises(ModelError, match="Did you mean 'blip'"):
        find_model(both, model="blop")


def test_a_folder_of_weights_says_its_kind_and_a_name_is_taken_for_the_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vilt"}))
    found = find_model(tmp_path)
    assert (found.model.kind, found.model.weights, found.adapter) == ("vilt", str(tmp_path), None)
    assert find_model("dandelin/vilt-b32-finetuned-vqa").model.kind == "vilt"
    assert find_model().model.weights == "Salesforce/blip-vqa-base"
    assert find_model(model="vilt").model.weights == "dandelin/vilt-b32-finetuned-vqa"


def test_a_wrong_folder_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ModelError, match="has no trained adapter yet"):
        find_model(run)
    with pytest.raises(ModelError, match="holds no adapter"):
        find_adapter(tmp_path)
    with pytest.raises(ModelError, match="There is no"):
        find_adapter(tmp_path / "gone")
    with pytest.raises(ModelError, match="belongs to a vilt model, not to blip"):
        find_model(make_adapter(tmp_path / "adapter"), model="blip")
    with pytest.raises(ModelError, match="Did you mean 'vilt'"):
        find_model(model="vlt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="a whole model, not an adapter"):
        find_adapter(tmp_path)
