"""LoRA goes where it is asked to, is counted as it is, and only fits the base it was made for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from transformers import BlipConfig, BlipForQuestionAnswering

from data_prep.outcomes import UserError
from data_prep.records import Example
from tests.conftest import launch, output
from tests.vqa.rounding import MERGED, assert_same_but_for_rounding
from tests.vqa.tiny_models import QUESTIONS, make_model, noise_images
from vqa.inference import saved_model
from vqa.inference.samples import evaluate_on_samples
from vqa.inference.saved_model import merge_adapter
from vqa.models.base import Model, model_class
from vqa.models.lora import apply_lora_to_model, load_adapter, parameter_table
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip") / "weights"
    make_model("blip", folder)
    return folder


def scores(model: Any) -> torch.Tensor:
    batch = model.processor.collate(noise_images(), QUESTIONS, [["red"] * len(group) for group in QUESTIONS])
    with torch.no_grad():
        logits: torch.Tensor = model.net(**batch)["logits"]
    return logits


def adapted(folder: Path, out: Path, **settings: Any) -> Model:
    """A model with an adapter that changes its scores, saved to ``out``."""
    model = apply_lora_to_model(make_model("blip", folder), LoraSettings(**{"r": 4, "dropout": 0.0} | settings))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.net.eval().save_pretrained(out)
    return model


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"r": 2, "alpha": 64}, {"targets": ["dense", "query"]}],
    ids=["plain", "rslora", "dora", "rank and alpha", "targets"],
)
def test_an_adapter_of_every_sort_comes_back_and_plain_peft_loads_it(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = adapted(folder, tmp_path / "adapter", **settings)
    expected = scores(model)
    assert (expected - scores(make_model("blip", folder))).abs().max() > 1e-3
    again = load_adapter(make_model("blip", folder), tmp_path / "adapter")
    saved, loaded_again = (get_peft_model_state_dict(m.net) for m in (model, again))
    assert saved.keys() == loaded_again.keys()
    assert all(torch.equal(loaded_again[name], weight) for name, weight in saved.items())
    assert_same_but_for_rounding(scores(again), expected)
    plain = PeftModel.from_pretrained(BlipForQuestionAnswering.from_pretrained(folder), str(tmp_path / "adapter"))
    assert sum("lora_" in name for name, _ in plain.named_parameters()) > 0


def test_the_table_counts_what_is_trained_and_each_shared_weight_once(folder: Path) -> None:
    model = apply_lora_to_model(make_model("blip", folder), LoraSettings(r=16))
    text = model.net.get_base_model().config.text_config
    # query and value of self- and cross-attention, in the encoder's and the decoder's layers; A and B of rank 16 each
    by_hand = 2 * text.num_hidden_layers * 2 * 2 * 16 * 2 * text.hidden_size
    table = parameter_table(model)
    assert table.trainable == table.lora == by_hand
    unique = {id(p): p.numel() for p in model.net.parameters()}
    assert table.total == sum(unique.values())
    assert table.percent == pytest.approx(100 * by_hand / table.total, abs=1e-3)


@pytest.mark.slow
def test_rank_16_trains_2_359_296_parameters_and_rank_8_the_published_number() -> None:
    with torch.device("meta"):
        net = BlipForQuestionAnswering(BlipConfig())
    model: Any = type(
        "Whole", (), {"net": net, "lora_targets": ("query", "value"), "modules_to_save": (), "published": {}}
    )
    for rank, expected in ((16, 2_359_296), (8, 1_179_648)):
        apply_lora_to_model(model, LoraSettings(r=rank))
        assert parameter_table(model).trainable == expected
        model.net = model.net.unload()


def test_targets_that_match_nothing_are_answered_with_the_layers_that_there_are(folder: Path) -> None:
    with pytest.raises(UserError, match=r"match no layer.*query"):
        apply_lora_to_model(make_model("blip", folder), LoraSettings(targets=["q_proj"]))


def test_a_folder_without_an_adapter_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter"):
        load_adapter(make_model("blip", folder), tmp_path)


def test_an_adapter_of_another_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    adapted(folder, tmp_path / "adapter", targets=["query", "value"])
    with pytest.raises(UserError, match="trained on another base"):
        load_adapter(make_model("vilt", tmp_path / "vilt"), tmp_path / "adapter")


def test_merged_weights_score_as_base_and_adapter_do(folder: Path, tmp_path: Path) -> None:
    expected = scores(adapted(folder, tmp_path / "adapter"))
    settings = ModelSettings(kind="blip", weights=str(folder))
    merged = merge_adapter(settings, tmp_path / "adapter", tmp_path / "merged")
    alone = model_class("blip").load(ModelSettings(kind="blip", weights=str(merged)))
    assert_same_but_for_rounding(scores(alone), expected, MERGED)


def test_a_saved_model_answers_in_a_fresh_process_as_it_did_here(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder, tmp_path / "adapter")
    (tmp_path / "images").mkdir()
    examples = []
    for number, (image, group) in enumerate(zip(noise_images(), QUESTIONS, strict=True)):
        image.save(tmp_path / "images" / f"{number}.png")
        examples += [Example(q, f"I{number}", f"P{number}", f"{number}.png", q, "red", "", "", "") for q in group]
    settings = ModelSettings(kind="blip", weights=str(folder))
    there = saved_model.test_saved_model(settings, tmp_path / "adapter", examples, tmp_path / "images")
    here = evaluate_on_samples(model, examples, tmp_path / "images", EvaluateSettings())
    assert [(row.id, row.text) for row in there] == [(row.id, row.text) for row in here]


def test_a_saved_model_that_does_not_load_is_named_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match="holds no adapter"):
        saved_model.test_saved_model(
            ModelSettings(kind="blip", weights=str(folder)), tmp_path / "adapter", [], tmp_path
        )


@pytest.mark.slow
def test_adapter_and_merged_weights_remember_how_their_questions_began(folder: Path, tmp_path: Path) -> None:
    trained = ModelSettings(kind="blip", weights=str(folder), question_prefix="enc")
    model = apply_lora_to_model(model_class("blip").load(trained), LoraSettings(r=2))
    model.net.save_pretrained(tmp_path / "adapter")
    model.save_extra(tmp_path / "adapter")
    plain = trained.model_copy(update={"question_prefix": "cls"})  # as a user who only has the adapter
    merged = merge_adapter(plain, tmp_path / "adapter", tmp_path / "merged")
    image = [Image.new("RGB", (64, 64))]
    expected = model.processor.collate(image, [["What?"]])["input_ids"]
    for other in (
        load_adapter(model_class("blip").load(plain), tmp_path / "adapter"),
        model_class("blip").load(ModelSettings(kind="blip", weights=str(merged))),
    ):
        assert torch.equal(other.processor.collate(image, [["What?"]])["input_ids"], expected)
    untouched = model_class("blip").load(plain).processor.collate(image, [["What?"]])["input_ids"]
    assert not torch.equal(untouched, expected)


def test_the_command_merges_an_adapter_into_a_folder_that_answers_by_itself(folder: Path, tmp_path: Path) -> None:
    adapted(folder, tmp_path / "adapter")
    out = tmp_path / "merged"
    done = launch("merge", "--weights", folder, "--adapter", tmp_path / "adapter", "--output", out)
    assert done.returncode == 0, output(done)
    noise_images()[0].save(tmp_path / "p.png")
    asked: list[str | Path] = ["--image", tmp_path / "p.png", "--question", QUESTIONS[0][0]]
    alone = launch("predict", "--weights", out, *asked)
    both = launch("predict", "--weights", folder, "--adapter", tmp_path / "adapter", *asked)
    assert alone.stdout == both.stdout and alone.stdout.strip(), output(alone)
