"""The library's one function and predict, with a real (tiny, untrained) BLIP."""

from __future__ import annotations

from pathlib import Path

import pytest

import vqa
from data_prep.outcomes import UserError
from tests.vqa.evaluation.rows import examples, write_images

pytestmark = pytest.mark.xdist_group("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vqa.models.tiny import make_tiny_model

    root, rows = tmp_path_factory.mktemp("library"), examples(3)
    write_images(root / "images", rows)
    make_tiny_model("blip", root / "model", [text for e in rows for text in (e.question, e.answer)])
    return root


def test_questions_are_answered_in_the_order_asked(folder: Path) -> None:
    images = [folder / "images" / f"{i}/{i}.jpg" for i in (1, 0, 1)]
    answers = vqa.answer(images, ["What?", "Which?", "What?"], weights=folder / "model")
    assert len(answers) == 3
    assert answers[0] == answers[2]


def test_predict_gives_the_rows_it_can_and_names_the_one_it_cannot(folder: Path) -> None:
    from vqa.inference.predict import predict
    from vqa.settings import ModelSettings

    asked, out = folder / "asked.csv", folder / "out.csv"
    asked.write_text("image_name,question\n0/0.jpg,What?\nno.jpg,What?\n")
    model = ModelSettings(kind="blip", weights=str(folder / "model"))
    found = predict(model, None, folder / "images", asked, out)
    assert (found.exit_code, len(found.problems), found.answers[1]) == (1, 1, "")
    assert out.read_text().splitlines()[2] == "no.jpg,What?,,"


def test_unequal_numbers_of_images_and_questions_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="1 images and 2 questions"):
        vqa.answer(["a.jpg"], ["What?", "Which?"], weights=folder / "model")
