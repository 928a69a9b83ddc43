"""Answering in bulk: one pass for all variants of a model, resumed per variant, with broken images and scarce memory."""

import dataclasses
import errno
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Example
from tests.vqa.tiny_models import QUESTIONS, make_model, noise_images
from vqa.dataset import open_image
from vqa.evaluation.control import with_gray
from vqa.inference.answerer import Answerer, cut
from vqa.models.lora import apply_lora_to_model
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings

SETTINGS = EvaluateSettings(batch_size=3, max_new_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, two adapters that answer differently, images."""
    folder = tmp_path_factory.mktemp("answering")
    make_model("blip", folder / "weights")
    for seed, name in enumerate(("one", "two")):
        model = apply_lora_to_model(make_model("blip", folder / "weights"), LoraSettings(r=4))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in model.net.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(0, 0.5)
        model.net.save_pretrained(folder / name)
    (folder / "images").mkdir()
    for number, image in enumerate(noise_images()):
        image.save(folder / "images" / f"{number}.png")
    return folder


def examples() -> list[Example]:
    return [
        Example(f"{number}-{place}", f"I{number}", f"P{number}", f"{number}.png", question, "red", "", "", "")
        for number, group in enumerate(QUESTIONS)
        for place, question in enumerate(group)
    ]


def answerer(folder: Path, *variants: str, **settings: Any) -> Answerer:
    adapters = {name: None if name == "base" else folder / name for name in variants}
    model = ModelSettings(kind="blip", weights=str(folder / "weights"))
    return Answerer(model, adapters, SETTINGS.model_copy(update=settings), folder / "images")


class Outcomes:
    """What was recorded, by variant and question."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, Ok | Failed]] = defaultdict(dict)

    def todo(self, example: Example, variant: str) -> Todo[Example]:
        def record(outcome: Ok | Failed, *, durable: bool = False) -> None:
            assert example.id not in self.of[variant], "recorded twice"
            self.of[variant][example.id] = outcome

        return Todo(example, record, variant)

    def answers(self, variant: str) -> dict[str, str]:
        return {key: o.value.answer for key, o in self.of[variant].items() if isinstance(o, Ok)}


def run(
    which: Answerer,
    *variants: str,
    items: Sequence[Example] | None = None,
    lacks: Callable[[str, str], bool] = lambda variant, key: True,
) -> Outcomes:
    """Answer all questions in all variants, except for what ``lacks`` says is answered already."""
    outcomes = Outcomes()
    asked = ((e, name) for e in items or examples() for name in variants if lacks(name, e.id))
    which.process(outcomes.todo(*each) for each in asked)
    return outcomes


def test_one_pass_for_base_and_adapters_answers_as_a_pass_for_each(folder: Path) -> None:
    variants = ("base", "one", "two")
    together = run(answerer(folder, *variants), *variants)
    for name in variants:
        alone = run(answerer(folder, name), name)
        assert together.answers(name) == alone.answers(name)
        assert together.answers(name).keys() == {e.id for e in examples()}
    assert len({tuple(together.answers(name).values()) for name in variants}) == 3, "the variants differ"


def test_images_are_encoded_once_for_all_variants(folder: Path) -> None:
    which = answerer(folder, "base", "one", "two")
    seen: list[int] = []
    which.model.net.get_base_model().vision_model.register_forward_hook(
        lambda module, arguments, out: seen.append(len(out.last_hidden_state))
    )
    run(which, "base", "one", "two")
    assert sum(seen) == len(QUESTIONS)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_the_batch_size_changes_no_answer(folder: Path, size: int) -> None:
    expected = run(answerer(folder, "one"), "one").answers("one")
    assert run(answerer(folder, "one", batch_size=size), "one").answers("one") == expected


def test_what_a_variant_has_already_is_neither_answered_nor_recorded_again(folder: Path) -> None:
    which = answerer(folder, "base", "one")
    asked: list[list[str]] = []
    answer_batch = which.answer_batch

    def watched(batch: Any, variants: Any = None) -> Any:
        asked.append(list(variants))
        return answer_batch(batch, variants)

    which.answer_batch = watched  # type: ignore[method-assign]
    lacking = {e.id for e in examples()[-1:]}
    found = run(which, "base", "one", lacks=lambda variant, key: variant == "one" or key in lacking)
    assert found.of["base"].keys() == lacking
    assert found.of["one"].keys() == {e.id for e in examples()}
    assert asked.count(["base", "one"]) == 1 and asked.count(["one"]) == len(asked) - 1 > 0


def test_questions_about_a_gray_image_need_no_file_and_are_answered_about_one(folder: Path) -> None:
    items = with_gray(examples())
    which = answerer(folder, "one", batch_size=100)
    seen: list[int] = []
    which.model.net.get_base_model().vision_model.register_forward_hook(
        lambda module, arguments, out: seen.append(len(out.last_hidden_state))
    )
    found = run(which, "one", items=items).answers("one")
    assert found.keys() == {e.id for e in items} and seen == [1]
    assert len({(e.question, found[e.id]) for e in items}) == len({e.question for e in items})


def test_an_unreadable_image_fails_its_questions_and_no_others(folder: Path, tmp_path: Path) -> None:
    bad = [Example("bad", "I", "P", "gone.png", "What?", "red", "", "", "")]
    found = run(answerer(folder, "base"), "base", items=[*examples()[:2], *bad, *examples()[2:]])
    failed = found.of["base"].pop("bad")
    assert isinstance(failed, Failed) and failed.reason == "image_unreadable" and "gone.png" in failed.detail
    assert found.answers("base") == run(answerer(folder, "base"), "base").answers("base")


def test_no_question_is_answered_about_another_image_than_it_was_asked_about(folder: Path) -> None:
    changed = [dataclasses.replace(e, image_sha256="0" * 64) for e in examples()[:1]]
    (failed,) = run(answerer(folder, "base"), "base", items=changed).of["base"].values()
    assert isinstance(failed, Failed) and failed.reason == "image_changed" and not failed.retry


def test_an_image_with_more_questions_than_a_batch_is_answered_in_parts(folder: Path) -> None:
    def asked() -> list[Example]:
        return [Example(f"{n}", "I", "P", "0.png", QUESTIONS[0][n % 2], "red", "", "", "") for n in range(20)]

    assert [len(batch) for batch in cut(iter(asked()), 8)] == [8, 8, 4]
    few = run(answerer(folder, "one", batch_size=3), "one", items=asked()).answers("one")
    assert few == run(answerer(folder, "one", batch_size=50), "one", items=asked()).answers("one")
    assert len(few) == 20


def test_a_file_system_that_recovers_costs_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))

    def stale(root: Path, path: str, image_id: str, sha256: str) -> Any:
        if next(calls) < 2:
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return open_image(root, path, image_id, sha256)

    monkeypatch.setattr("vqa.inference.answerer.open_image", stale)
    outcomes = run(answerer(folder, "base"), "base").of["base"]
    failed = [outcome for outcome in outcomes.values() if isinstance(outcome, Failed)]
    assert failed and all(outcome.retry and "Stale" in outcome.detail for outcome in failed)


def test_an_image_folder_that_is_not_mounted_ends_the_task_and_fails_no_question(folder: Path) -> None:
    model = ModelSettings(kind="blip", weights=str(folder / "weights"))
    with pytest.raises(UserError, match=r"no image folder .*mounted"):
        Answerer(model, {"base": None}, SETTINGS, folder / "elsewhere")


def test_where_memory_does_not_suffice_a_batch_is_halved_and_no_answer_changes(folder: Path) -> None:
    expected = run(answerer(folder, "base", "one"), "base", "one")
    which = answerer(folder, "base", "one", batch_size=100)
    encode, sizes = which.model.encode, []

    def scarce(batch: Any) -> Any:
        sizes.append(len(batch["pixels"]))
        if len(batch["pixels"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    which.model.encode = scarce  # type: ignore[method-assign]
    found = run(which, "base", "one")
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert all(found.answers(name) == expected.answers(name) for name in ("base", "one"))


def test_a_model_that_does_not_fit_with_one_image_is_a_clear_end(folder: Path) -> None:
    which = answerer(folder, "base")

    def none(batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    which.model.encode = none  # type: ignore[method-assign]
    with pytest.raises(UserError, match="does not fit on this GPU"):
        run(which, "base")


def test_halves_hold_the_images_with_their_own_questions(folder: Path) -> None:
    model = make_model("blip", folder / "weights")
    batch = model.processor.collate(noise_images(), QUESTIONS)
    parts = model.halve(batch)
    for name, tensor in batch.items():
        if name != "image_of_question":
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
    assert [part["image_of_question"].tolist() for part in parts] == [[0, 0, 1], [0, 0, 0, 1]]


def test_adapters_for_different_answers_are_refused_together(tmp_path: Path) -> None:
    for name, answers in (("one", '["red"]'), ("two", '["blue"]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "answers.json").write_text(answers)
    make_model("vilt", tmp_path / "weights")
    model = ModelSettings(kind="vilt", weights=str(tmp_path / "weights"))
    with pytest.raises(UserError, match="different answers"):
        Answerer(model, {"one": tmp_path / "one", "two": tmp_path / "two"}, SETTINGS, tmp_path)


def test_batches_hold_whole_images_and_a_sorted_window_has_less_padding() -> None:
    rng = random.Random(0)
    items = [
        Example(f"{image}-{number}", "", "", f"{image}.jpg", "q" * rng.randint(10, 90), "", "", "", "")
        for image in range(40)
        for number in range(rng.randint(1, 6))
    ]

    def padding(batches: list[list[Example]]) -> int:
        return sum(len(batch) * max(len(e.question) for e in batch) for batch in batches)

    plain, sorted_ = (list(cut(iter(items), 16, window)) for window in (1, 3))
    for batches in (plain, sorted_):
        assert {e.id for batch in batches for e in batch} == {e.id for e in items}
        places = {(e.image_path, number) for number, batch in enumerate(batches) for e in batch}
        assert len(places) == 40, "an image is in two batches"
        assert max(map(len, batches)) < 16 + 6 and len(batches) <= len(items) / 12
    assert padding(sorted_) < padding(plain)
