"""BLIP with images encoded once gives what transformers' own code gives; what that code gets wrong is right here."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForQuestionAnswering, BlipImageProcessorPil

from tests.vqa.rounding import BACKWARD, PIXEL, PROBABILITY, assert_same_but_for_rounding
from tests.vqa.tiny_models import ANSWERS, QUESTIONS, WORDS, make_model, noise_images
from vqa.models.base import Batch
from vqa.models.blip import IGNORED, Model
from vqa.models.lora import apply_lora_to_model
from vqa.settings import EvaluateSettings, LoraSettings

GREEDY = EvaluateSettings(max_new_tokens=6)
PAIRS = [(number, q, a) for number, group in enumerate(QUESTIONS) for q, a in zip(group, ANSWERS[number], strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blip") / "weights"


@pytest.fixture
def model(folder: Path) -> Model:
    made = make_model("blip", folder)
    assert isinstance(made, Model)
    return made


@pytest.fixture
def theirs(model: Model) -> BlipForQuestionAnswering:
    """transformers' own network with the same weights."""
    network = BlipForQuestionAnswering(model.net.config).eval()
    network.load_state_dict(model.net.state_dict())
    return network


def whole_batch(model: Model) -> Batch:
    return model.processor.collate(noise_images(), QUESTIONS, ANSWERS)


def pixel_values(model: Model, image: Image.Image) -> Tensor:
    values: Tensor = model.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    return values


def their_logits(model: Model, network: BlipForQuestionAnswering, number: int, question: str, ids: Tensor) -> Tensor:
    """The decoder's scores for one question alone, each part called as transformers' own forward calls it."""
    text = model.processor.tokenizer(question, return_tensors="pt")
    seen = network.vision_model(pixel_values=pixel_values(model, noise_images()[number])).last_hidden_state
    read = network.text_encoder(
        input_ids=text["input_ids"],
        attention_mask=text["attention_mask"],
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long),
    ).last_hidden_state
    logits: Tensor = network.text_decoder(
        input_ids=ids, encoder_hidden_states=read, encoder_attention_mask=text["attention_mask"]
    ).logits
    return logits


def test_scores_are_those_of_transformers_with_unequal_numbers_of_questions(
    model: Model, theirs: BlipForQuestionAnswering
) -> None:
    batch = whole_batch(model)
    with torch.no_grad():
        ours = model.net(**batch)["logits"]
        for row, (number, question, _) in enumerate(PAIRS):
            length = int((batch["labels"][row] != IGNORED).sum())
            ids = batch["decoder_input_ids"][row : row + 1, :length]
            alone = their_logits(model, theirs, number, question, ids)[0]
            assert_same_but_for_rounding(ours[row, :length], alone)
    assert ours.std() > 0.1, "scores that hardly differ would show no mistake"


@pytest.mark.parametrize("targets", [["query", "value"], ["qkv", "projection", "query"]], ids=["text", "vision too"])
def test_gradients_of_the_adapter_are_those_of_transformers(model: Model, targets: list[str]) -> None:
    apply_lora_to_model(model, LoraSettings(r=4, dropout=0.0, targets=targets))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.net.eval()
    batch = whole_batch(model)
    model.net(**batch)["loss"].backward()
    ours = {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}
    model.net.zero_grad()
    tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
    for row, (number, question, _) in enumerate(PAIRS):
        length = int((batch["labels"][row] != IGNORED).sum())
        logits = their_logits(model, model.blip, number, question, batch["decoder_input_ids"][row : row + 1, :length])[
            0
        ]
        loss = torch.nn.functional.cross_entropy(
            logits[:-1],
            batch["labels"][row, 1:length],
            reduction="sum",
            label_smoothing=model.blip.text_decoder.label_smoothing,
        )
        (loss / tokens).backward()
    theirs = {name: p.grad for name, p in model.net.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and ours
    assert any("vision_model" in name for name in ours) == ("qkv" in targets)
    for name, gradient in ours.items():
        assert_same_but_for_rounding(gradient, theirs[name], BACKWARD)


def test_greedy_answers_are_those_of_generate_for_one_question_at_a_time(
    model: Model, theirs: BlipForQuestionAnswering
) -> None:
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        ours = model.answer(batch, model.encode(batch), GREEDY, adapted=False)
        for (number, question, _), answer in zip(PAIRS, ours, strict=True):
            text = model.processor.tokenizer(question, return_tensors="pt")
            ids = theirs.generate(
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                pixel_values=pixel_values(model, noise_images()[number]),
                max_new_tokens=GREEDY.max_new_tokens,
                num_beams=1,
            )
            assert answer.text == model.processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert len({answer.text for answer in ours}) > 1 and all(0 <= answer.confidence <= 1 for answer in ours)


def test_beam_search_on_a_batch_finds_what_transformers_finds_for_each_question(
    model: Model, theirs: BlipForQuestionAnswering
) -> None:
    beam = EvaluateSettings(decoding="beam", beams=3, max_new_tokens=5)
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        ours = model.answer(batch, model.encode(batch), beam, adapted=False)
        for (number, question, _), answer in zip(PAIRS, ours, strict=True):
            text = model.processor.tokenizer(question, return_tensors="pt")
            found = theirs.generate(
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                pixel_values=pixel_values(model, noise_images()[number]),
                max_new_tokens=5,
                num_beams=3,
                length_penalty=0.0,
                return_dict_in_generate=True,
                output_scores=True,
            )
            said = model.processor.tokenizer.decode(found.sequences[0], skip_special_tokens=True).strip()
            assert answer.text == said
            assert answer.confidence == pytest.approx(float(found.sequences_scores[0].exp()), rel=PROBABILITY)


def test_ranking_chooses_the_likeliest_of_all_candidates(model: Model) -> None:
    candidates = sorted({answer for group in ANSWERS for answer in group})
    model.set_candidates(candidates)
    settings = EvaluateSettings(decoding="ranking", shortlist=len(candidates))
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        chosen = model.answer(batch, model.encode(batch), settings, adapted=False)
        for (number, question, _), answer in zip(PAIRS, chosen, strict=True):
            likelihood = {}
            for candidate in candidates:
                one = model.processor.collate([noise_images()[number]], [[question]], [[candidate]])
                said = model.net(**one)["logits"][0, :-1].log_softmax(-1)
                likelihood[candidate] = float(said.gather(1, one["labels"][0, 1:, None]).sum())
            assert answer.text == max(likelihood, key=likelihood.__getitem__)


@pytest.mark.parametrize("shortlist", [1, 2])
def test_a_shortlist_keeps_the_likeliest_first_tokens(model: Model, shortlist: int) -> None:
    candidates = ["red", "wood", "round", "yes"]
    model.set_candidates(candidates)
    batch = model.processor.collate(noise_images()[:1], [QUESTIONS[0][:1]])
    with torch.no_grad():
        start = model.processor.collate(noise_images()[:1], [QUESTIONS[0][:1]], [["red"]])
        first = model.net(**start)["logits"][0, 0]
        settings = EvaluateSettings(decoding="ranking", shortlist=shortlist)
        answer = model.answer(batch, model.encode(batch), settings, adapted=False)[0].text
    scores = {word: float(first[model.processor.tokenizer.convert_tokens_to_ids(word)]) for word in candidates}
    assert answer in sorted(scores, key=scores.__getitem__)[-shortlist:]


def test_the_decoder_starts_with_the_same_token_in_training_and_in_inference(model: Model) -> None:
    start = model.net.config.text_config.bos_token_id
    assert set(whole_batch(model)["decoder_input_ids"][:, 0].tolist()) == {start} == {model.processor_dec()}
    assert start != model.processor.tokenizer.cls_token_id, "what transformers' own training would start with"


def test_pads_count_nowhere_and_are_never_fed_as_ignored_labels(model: Model) -> None:
    batch = whole_batch(model)
    pad = model.processor.tokenizer.pad_token_id
    assert (batch["labels"] == IGNORED).any(), "the answers have unequal lengths"
    assert (batch["labels"] != pad).all()
    assert (batch["decoder_input_ids"] >= 0).all()
    assert ((batch["decoder_input_ids"] == pad) == (batch["labels"] == IGNORED)).all()
    with torch.no_grad():
        loss = model.net(**batch)["loss"]
        changed = dict(batch)
        changed["decoder_input_ids"] = torch.where(batch["labels"] == IGNORED, 7, batch["decoder_input_ids"])
        assert_same_but_for_rounding(model.net(**changed)["loss"], loss)


def test_the_scores_of_a_question_are_the_same_in_whatever_batch_it_is(model: Model) -> None:
    batch = whole_batch(model)
    with torch.no_grad():
        together = model.net(**batch)["logits"]
        for row, (number, question, answer) in enumerate(PAIRS):
            one = model.processor.collate([noise_images()[number]], [[question]], [[answer]])
            alone = model.net(**one)["logits"][0]
            assert_same_but_for_rounding(together[row, : len(alone)], alone)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_are_those_of_the_pinned_image_processor(model: Model, folder: Path, mode: str) -> None:
    processor = BlipImageProcessorPil.from_pretrained(folder)
    for image in noise_images(((90, 61), (61, 90), (300, 20), (64, 64), (1, 1))):
        image = image.convert(mode).convert("RGB")
        pixels = model.processor.collate([image], [["What?"]])["pixels"]
        ours = (pixels.float() / 255 - model.net.image_mean) / model.net.image_std
        assert_same_but_for_rounding(ours, processor(image, return_tensors="pt")["pixel_values"], PIXEL)


def test_the_image_processors_own_settings_are_used(folder: Path, tmp_path: Path) -> None:
    model = make_model("blip", folder)
    model.processor.image_processor.resample = Image.Resampling.NEAREST
    model.net.save_pretrained(tmp_path / "other")
    model.processor.save(tmp_path / "other")
    other = make_model("blip", tmp_path / "other")
    image = noise_images()[1]
    near = other.processor.collate([image], [["What?"]])["pixels"]
    theirs = other.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert_same_but_for_rounding((near.float() / 255 - other.net.image_mean) / other.net.image_std, theirs, PIXEL)


@pytest.mark.parametrize(("targets", "reached"), [(["query", "value"], False), (["qkv"], True)])
def test_the_vision_tower_has_gradients_only_where_an_adapter_reaches_it(
    model: Model, targets: list[str], reached: bool
) -> None:
    apply_lora_to_model(model, LoraSettings(r=2, targets=targets))
    batch = whole_batch(model)
    assert model.blip.encode_images(batch["pixels"]).requires_grad is reached
    assert (model.encode(batch) is None) is reached, "what depends on an adapter cannot be shared by several"


def test_an_image_is_encoded_once_for_all_of_its_questions(model: Model) -> None:
    seen = []
    model.net.vision_model.register_forward_hook(lambda module, arguments, out: seen.append(len(out.last_hidden_state)))
    with torch.no_grad():
        model.net(**whole_batch(model))
    assert sum(seen) == len(QUESTIONS) and len(PAIRS) > len(QUESTIONS)


def test_an_image_cut_over_two_batches_is_encoded_once_in_training(model: Model) -> None:
    lora = LoraSettings(dropout=0.0)
    apply_lora_to_model(model, lora)
    model.net.train()
    first, second, third = noise_images()[:3]
    question, answer = QUESTIONS[0][0], ANSWERS[0][0]
    batches = [
        model.processor.collate(shown, [[question]] * len(shown), [[answer]] * len(shown))
        for shown in ([first, second], [second], [second, third], [first, third])
    ]
    encoded: list[int] = []
    model.blip.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    losses = [model.net(**batch)["loss"] for batch in batches]
    assert sum(encoded) == 2 + 0 + 1 + 2
    again = []
    for batch in batches:  # each as the first that a process sees: nothing is kept from a batch before
        model.blip._last_image = None
        again.append(model.net(**batch)["loss"])
    assert [float(loss) for loss in losses] == [float(loss) for loss in again]  # to the last bit


def test_the_first_token_of_a_question_is_the_one_that_is_configured(folder: Path) -> None:
    plain, marked = (make_model("blip", folder, question_prefix=prefix) for prefix in ("cls", "enc"))
    first = [
        {int(row[0]) for row in m.processor.collate(noise_images(), QUESTIONS)["input_ids"]} for m in (plain, marked)
    ]
    assert isinstance(marked, Model)
    assert first == [{plain.processor.tokenizer.cls_token_id}, {marked.processor_dec() + 1}]


def test_words_of_the_answers_are_known_to_the_tiny_tokenizer(model: Model) -> None:
    ids = model.processor.tokenizer(WORDS)["input_ids"]
    assert all(model.processor.tokenizer.unk_token_id not in row for row in ids)
    assert all(len(a) > 2 for a, _ in pairwise([*ids, []]))
