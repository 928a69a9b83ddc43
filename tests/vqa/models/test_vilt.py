"""ViLT with images prepared once gives what transformers' own code gives, whatever batch a question is in."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil

from data_prep.demo.questions import vocabulary
from data_prep.files import read_jsonl
from data_prep.outcomes import Interrupted, UserError
from data_prep.records import Example
from jobs.run.layout import RunDir
from tests.conftest import SHARED, launch, launch_args, output, write_config
from tests.vqa.rounding import BACKWARD, LAYER, MERGED, PIXEL, assert_same_but_for_rounding
from tests.vqa.tiny_models import ANSWERS, QUESTIONS, make_model, noise_images
from tests.vqa.training_data import Material, log, make_material, outcome, quick, start_workers
from vqa.inference import saved_model
from vqa.inference.samples import evaluate_on_samples
from vqa.models.lora import apply_lora_to_model, load_adapter, parameter_table
from vqa.models.tiny import make_tiny_model
from vqa.models.vilt import ANSWERS as ANSWERS_FILE
from vqa.models.vilt import Model
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings
from vqa.training.train import train

GREEDY = EvaluateSettings()
FLAT = [answer for group in ANSWERS for answer in group]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vilt") / "weights"


def loaded(folder: Path, answers: Sequence[str] = ()) -> Model:
    made = make_model("vilt", folder, answers)
    assert isinstance(made, Model)
    return made


@pytest.fixture
def model(folder: Path) -> Model:
    made = loaded(folder, FLAT)
    torch.manual_seed(4)
    torch.nn.init.normal_(made.net.classifier[3].weight)  # a new row would be as good as any other
    return made


def transformers_scores(model: Model, image: Image.Image, question: str) -> torch.Tensor:
    """The scores of transformers' own network with the same weights, for one question alone."""
    theirs = ViltForQuestionAnswering(model.net.config).eval()
    theirs.load_state_dict(model.net.state_dict())
    text = model.processor.tokenizer(question, return_tensors="pt")
    pixels = model.processor.image_processor(image, return_tensors="pt")
    with torch.no_grad():
        scores: torch.Tensor = theirs(
            input_ids=text["input_ids"], attention_mask=text["attention_mask"], **pixels
        ).logits
    return scores[0]


def scores(model: Model, images: list[Image.Image], questions: list[list[str]]) -> torch.Tensor:
    batch = model.processor.collate(images, questions)
    with torch.no_grad():
        return model.vilt.logits(
            model.encode(batch), batch["input_ids"], batch["attention_mask"], batch["image_of_question"]
        )


def test_scores_are_those_of_transformers_for_images_of_any_shape(model: Model) -> None:
    ours = scores(model, noise_images(), QUESTIONS)
    theirs = [
        transformers_scores(model, image, question)
        for image, group in zip(noise_images(), QUESTIONS, strict=True)
        for question in group
    ]
    assert_same_but_for_rounding(ours, torch.stack(theirs))
    assert ours.std() > 0.1, "scores that hardly differ would show no mistake"


def test_the_scores_of_a_question_are_the_same_in_whatever_batch_it_is(model: Model) -> None:
    together = scores(model, noise_images(), QUESTIONS)
    alone = [
        scores(model, [image], [[question]])
        for image, group in zip(noise_images(), QUESTIONS, strict=True)
        for question in group
    ]
    assert_same_but_for_rounding(together, torch.cat(alone))


def test_answering_draws_no_random_numbers(model: Model) -> None:
    before = torch.get_rng_state()
    scores(model, noise_images(), QUESTIONS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_are_those_of_the_pinned_image_processor(model: Model, mode: str) -> None:
    for image in noise_images(((90, 61), (61, 90), (130, 40), (64, 64))):
        image = image.convert(mode).convert("RGB")
        batch = model.processor.collate([image], [["What?"]])
        ours = (batch["pixels"].float() / 255 - model.net.image_mean) / model.net.image_std
        theirs = ViltImageProcessorPil.from_pretrained(model.net.name_or_path)(image, return_tensors="pt")
        assert_same_but_for_rounding(ours, theirs["pixel_values"], PIXEL)


def test_a_strip_is_answered_although_hardly_anything_of_it_is_left(model: Model) -> None:
    assert scores(model, noise_images(((400, 4), (4, 400))), [["What?"], ["What?"]]).isfinite().all()


def test_gradients_of_the_adapter_are_those_of_transformers(model: Model) -> None:
    model.modules_to_save = ()  # type: ignore[assignment,misc]  # peft's copy of the head would have other names
    apply_lora_to_model(model, LoraSettings(r=4, dropout=0.0))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    images = noise_images()
    model.net(**model.processor.collate(images, QUESTIONS, ANSWERS))["loss"].backward()
    ours = {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}
    model.net.zero_grad()
    total = 0.0
    for image, group, truths in zip(images, QUESTIONS, ANSWERS, strict=True):
        for question, truth in zip(group, truths, strict=True):
            text = model.processor.tokenizer(question, return_tensors="pt")
            target = torch.zeros(1, len(model.texts))
            target[0, model.texts.index(truth)] = 1
            out = ViltForQuestionAnswering.forward(
                model.vilt,
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                labels=target,
                **model.processor.image_processor(image, return_tensors="pt"),
            )
            (out.loss / len(FLAT)).backward()
            total += out.loss.item() / len(FLAT)
    theirs = {name: p.grad for name, p in model.net.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 3 * 3
    for name, gradient in ours.items():
        assert_same_but_for_rounding(gradient, theirs[name], BACKWARD)
    assert total > 0


def test_new_answers_get_a_row_each_and_the_labels_of_the_weights_keep_theirs(folder: Path) -> None:
    before = loaded(folder)
    after = loaded(folder, ["yes", "red", "blue", "red"])
    assert after.texts == ["yes", "no", "blue", "red"]
    assert after.net.config.num_labels == after.net.classifier[3].out_features == 4
    assert torch.equal(after.net.classifier[3].weight[:2], before.net.classifier[3].weight)
    assert_same_but_for_rounding(after.net.classifier[3].weight[2], before.net.classifier[3].weight.mean(0), depth=2)
    assert after.net.classifier[3].bias[2:].max() <= before.net.classifier[3].bias.min()


def test_an_answer_that_is_a_label_written_otherwise_begins_with_that_labels_weights(folder: Path) -> None:
    numbered = loaded(folder, ["2"])
    torch.nn.init.normal_(numbered.net.classifier[3].weight)  # else "2" would be the mean, with which new answers begin
    numbered.net.save_pretrained(folder)
    model = loaded(folder, ["two", "green"])
    two, same, green = (model.net.classifier[3].weight[model.texts.index(text)] for text in ("two", "2", "green"))
    assert torch.equal(two, same)
    assert not torch.allclose(green, same)


def test_without_its_adapter_it_chooses_among_the_labels_it_came_with(model: Model) -> None:
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        model.net.classifier[3].bias[model.known :] = 100.0
    base = model.answer(batch, model.encode(batch), GREEDY, adapted=False)
    adapted = model.answer(batch, model.encode(batch), GREEDY, adapted=True)
    assert {answer.text for answer in base} <= {"yes", "no"}
    assert {answer.text for answer in adapted} <= set(FLAT) - {"yes", "no"}
    assert all(0 <= answer.confidence <= 1 for answer in [*base, *adapted])


def test_candidates_bound_the_choice(model: Model) -> None:
    batch = model.processor.collate(noise_images(), QUESTIONS)
    model.set_candidates(["wood", "round", "never heard of"])
    said = model.answer(batch, model.encode(batch), EvaluateSettings(decoding="ranking"), adapted=True)
    assert {answer.text for answer in said} <= {"wood", "round"}


def test_beam_search_is_refused_with_a_clear_message(model: Model) -> None:
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with pytest.raises(UserError, match="no beam"):
        model.answer(batch, model.encode(batch), EvaluateSettings(decoding="beam"), adapted=True)


def trained(model: Model, out: Path) -> Path:
    """An adapter that changes the answers, saved as training saves it."""
    apply_lora_to_model(model, LoraSettings(r=4))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.net.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.net.eval().save_pretrained(out)
    model.save_extra(out)
    return out


def test_head_and_answers_are_saved_with_the_adapter_and_come_back(model: Model, folder: Path, tmp_path: Path) -> None:
    batch = model.processor.collate(noise_images(), QUESTIONS)
    adapter = trained(model, tmp_path / "adapter")
    expected = [answer.text for answer in model.answer(batch, model.encode(batch), GREEDY, adapted=True)]
    settings = ModelSettings(kind="vilt", weights=str(folder))
    again = load_adapter(Model.load(settings, Model.adapter_answers(adapter)), adapter)
    assert isinstance(again, Model) and again.texts == model.texts
    saved, loaded_again = (get_peft_model_state_dict(m.net) for m in (model, again))
    assert saved.keys() == loaded_again.keys() and any("classifier" in name for name in saved)
    assert all(torch.equal(loaded_again[name], weight) for name, weight in saved.items())
    assert [answer.text for answer in again.answer(batch, again.encode(batch), GREEDY, adapted=True)] == expected

    merged = saved_model.merge_adapter(settings, adapter, tmp_path / "merged")
    alone = Model.load(ModelSettings(kind="vilt", weights=str(merged)))
    said = alone.answer(batch, alone.encode(batch), GREEDY, adapted=False)
    assert [answer.text for answer in said] == expected
    both = (scores(m, noise_images(), QUESTIONS) for m in (alone, again))
    assert_same_but_for_rounding(*both, MERGED)
    theirs = ViltForQuestionAnswering.from_pretrained(merged).eval()
    text = again.processor.tokenizer(QUESTIONS[0][0], return_tensors="pt")
    pixels = again.processor.image_processor(noise_images()[0], return_tensors="pt")
    with torch.no_grad():
        label = int(
            theirs(input_ids=text["input_ids"], attention_mask=text["attention_mask"], **pixels).logits.argmax()
        )
    assert theirs.config.id2label[label] == expected[0]


@pytest.mark.slow
def test_a_saved_model_answers_in_a_fresh_process_as_it_did_here(model: Model, folder: Path, tmp_path: Path) -> None:
    adapter = trained(model, tmp_path / "adapter")
    (tmp_path / "images").mkdir()
    examples = []
    for number, (image, group) in enumerate(zip(noise_images(), QUESTIONS, strict=True)):
        image.save(tmp_path / "images" / f"{number}.png")
        examples += [Example(q, f"I{number}", f"P{number}", f"{number}.png", q, "red", "", "", "") for q in group]
    here = evaluate_on_samples(model, examples, tmp_path / "images", GREEDY)
    settings = ModelSettings(kind="vilt", weights=str(folder))
    there = saved_model.test_saved_model(settings, adapter, examples, tmp_path / "images")
    assert [(row.id, row.text) for row in there] == [(row.id, row.text) for row in here]


def test_an_adapter_for_other_answers_is_refused(model: Model, folder: Path, tmp_path: Path) -> None:
    adapter = trained(model, tmp_path / "adapter")
    (adapter / ANSWERS_FILE).write_text('["red"]')
    settings = ModelSettings(kind="vilt", weights=str(folder))
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(Model.load(settings, Model.adapter_answers(adapter)), adapter)


# Training


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Questions and images to train on, and an untrained tiny ViLT, which knows two of their answers at most."""
    torch.set_num_threads(1)  # as in the processes that are compared with this one: sums depend on it
    made = make_material(tmp_path_factory.mktemp("material"))
    texts = [text for example in made.examples for text in (example.question, example.answer)]
    return replace(made, weights=make_tiny_model("vilt", made.weights.parent / "vilt", texts))


def settings_of(material: Material, accumulation: int = 1) -> ModelSettings:
    lora = LoraSettings(targets=["query", "key", "value", "dense"], dropout=0.0)
    return material.model(kind="vilt", lora=lora, gradient_accumulation=accumulation)


def train_here(material: Material, out: Path, accumulation: int = 1, stop: Callable[[], bool] = lambda: False) -> None:
    model = settings_of(material, accumulation)
    train("tiny", model, quick(), data=material.data, image_root=material.images, out=out, stop=stop)


def test_a_training_that_was_stopped_ends_with_the_same_adapter_and_head(material: Material, tmp_path: Path) -> None:
    train_here(material, tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train_here(material, out, stop=lambda: len(log(out)) >= 5)
    train_here(material, out)
    assert outcome(out) == outcome(tmp_path / "whole")
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any("classifier" in name for name in weights), "the head is saved with the adapter"
    added = sorted({example.answer for example in material.examples})
    assert Model.adapter_answers(out / "adapter") == added
    assert f"It knows {len(added)} answers that its base does not" in (out / "adapter" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_two_processes_train_adapter_and_head_as_one_does(strategy: str, material: Material, tmp_path: Path) -> None:
    if strategy != "ddp" and shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds its CPU communication with g++, which is not here")
    train_here(material, tmp_path / "alone", accumulation=2)
    workers = start_workers(2, material, tmp_path / "two", settings_of(material), quick(strategy=strategy))
    ends = [worker.ended() for worker in workers]
    assert [code for code, _ in ends] == [0, 0], "\n".join(said for _, said in ends)
    assert [row["loss"] for row in log(tmp_path / "two")] == pytest.approx(
        [row["loss"] for row in log(tmp_path / "alone")], rel=1e-4
    )
    files = [tmp_path / out / "adapter" / "adapter_model.safetensors" for out in ("alone", "two")]
    alone, two = (load_file(file) for file in files)
    assert alone.keys() == two.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_run_with_vilt_goes_from_listings_to_report(catalogue: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue)
    tree = yaml.safe_load(config.read_text())
    weights = make_tiny_model("vilt", tmp_path / "weights", vocabulary())
    tree["models"] = {"patches": {**tree["models"]["blip"], "kind": "vilt", "weights": str(weights)}}
    config.write_text(yaml.safe_dump(tree))
    done = launch(*launch_args(config, tmp_path / "run"))
    assert done.returncode == 0, output(done)
    run = RunDir(tmp_path / "run")
    asked = {example.id for example in read_jsonl(run.split("test"), Example)}
    report = orjson.loads((tmp_path / "run" / "8_report" / "report.json").read_bytes())["models"]["patches"]
    assert report["questions"] == len(asked) and set(report["variants"]) == {"base", "lora"}
    assert (run.adapter("patches") / ANSWERS_FILE).is_file()


# The published sizes, and an adapter from elsewhere


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViLT-B/32 with its 3,129 answers; random weights."""
    made = make_model("vilt", tmp_path_factory.mktemp("full") / "tiny")
    folder = tmp_path_factory.mktemp("full") / "vilt"
    labels = {number: f"answer {number}" for number in range(3129)}
    config = ViltConfig(
        num_labels=3129,
        id2label=labels,
        label2id={text: number for number, text in labels.items()},
        max_image_length=-1,
    )
    ViltForQuestionAnswering(config).save_pretrained(folder)
    made.processor.tokenizer.save_pretrained(folder)
    ViltImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_adapter_from_elsewhere_loads_onto_a_vilt_and_changes_its_scores(full_size: Path) -> None:
    adapter = SHARED / "vilt_lora_adapter"
    if not adapter.is_dir():
        pytest.skip(f"{adapter} is not there")
    settings = ModelSettings(kind="vilt", weights=str(full_size))
    model = load_adapter(Model.load(settings, Model.adapter_answers(adapter)), adapter)
    assert isinstance(model, Model)
    with_adapter = scores(model, noise_images(), QUESTIONS)
    with model.net.disable_adapter():
        without = scores(model, noise_images(), QUESTIONS)
    assert (with_adapter - without).abs().max() > 1e-3
    plain: Any = PeftModel.from_pretrained(ViltForQuestionAnswering.from_pretrained(full_size), str(adapter)).eval()
    text = model.processor.tokenizer(QUESTIONS[0][0], return_tensors="pt")
    with torch.no_grad():
        theirs = plain(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            **model.processor.image_processor(noise_images()[0], return_tensors="pt"),
        ).logits[0]
    full_depth = 12 * 8 * LAYER  # ViLT-B has 12 layers that are 8 times as wide as the tiny network's (768)
    assert_same_but_for_rounding(with_adapter[0], theirs, full_depth)


@pytest.mark.slow
def test_the_published_adapter_has_884_736_parameters_and_the_head_is_counted_apart(full_size: Path) -> None:
    model = Model.load(ModelSettings(kind="vilt", weights=str(full_size)))
    apply_lora_to_model(model, LoraSettings())
    table = parameter_table(model)
    assert table.lora == 884_736
    assert table.trainable > table.lora


def test_an_adapter_of_another_size_is_refused(model: Model) -> None:
    adapter = SHARED / "vilt_lora_adapter"
    if not adapter.is_dir():
        pytest.skip(f"{adapter} is not there")
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(model, adapter)
