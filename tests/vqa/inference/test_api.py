"""The library and predict, with a real (tiny, untrained) BLIP."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqa
from data_prep.outcomes import UserError
from tests.conftest import ROOT
from tests.vqa.evaluation.rows import examples, write_images
from vqa.inference.predict import predict
from vqa.inference.source import find_model

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
    asked, out = folder / "asked.csv", folder / "out.csv"
    asked.write_text("image_name,question\n0/0.jpg,What?\nno.jpg,What?\n")
    found = predict(find_model(folder / "model"), folder / "images", asked, out)
    assert (found.exit_code, len(found.problems), found.answers[1]) == (1, 1, "")
    assert out.read_text().splitlines()[2] == "no.jpg,What?,,,"


def test_predict_keeps_further_columns_and_says_how_sure_the_model_is(folder: Path) -> None:
    asked, out = folder / "wide.csv", folder / "wide-out.csv"
    asked.write_text("item,filename,question,answer,confidence\nB07,0/0.jpg,What?,red,0.5\n")
    said: list[str] = []
    predict(find_model(folder / "model"), folder / "images", asked, out, said.append)
    (row,) = csv.DictReader(out.open())
    assert list(row) == ["image_name", "question", "answer", "generated_answer", "confidence", "item"]
    assert (row["image_name"], row["answer"], row["item"]) == ("0/0.jpg", "red", "B07")
    assert 0 <= float(row["confidence"]) <= 1
    assert any("confidence" in words for words in said), "the column that is replaced is named"


def test_unequal_numbers_of_images_and_questions_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="1 images and 2 questions"):
        vqa.answer(["a.jpg"], ["What?", "Which?"], weights=folder / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> vqa.VQAModel:
    return vqa.load(folder / "model")


def test_one_question_a_list_and_a_stream_get_the_same_answers(model: vqa.VQAModel, folder: Path) -> None:
    first, second = (folder / "images" / f"{i}/{i}.jpg" for i in (0, 1))
    one = model.ask(first, "What?")
    several = model.ask(first, ["Which?", "What?"])
    assert 0 <= one.confidence <= 1
    assert several[1].text == one.text and several[1].confidence == pytest.approx(one.confidence, rel=1e-3)
    asked = [(first, ["What?"]), (second, []), (second, ["Which?", "What?"] * 20), (first, ["Which?"])]
    many = list(model.ask_many(asked))
    assert [len(answers) for answers in many] == [1, 0, 40, 1]
    assert (many[0][0].text, many[3][0].text) == (one.text, several[0].text)
    assert [one.text] == vqa.answer([first], ["What?"], weights=folder / "model")


def test_a_file_an_image_and_an_array_are_the_same_to_ask_about(model: vqa.VQAModel, folder: Path) -> None:
    file = folder / "images/0/0.jpg"
    image = Image.open(file)
    expected = model.ask(str(file), "What?")
    assert model.ask(image, "What?") == model.ask(np.asarray(image), "What?") == expected
    see_through = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    assert model.ask(see_through, "What?") == model.ask(Image.new("RGB", (40, 30), "white"), "What?")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("no/such.jpg", "There is no image no/such.jpg"),
        (__file__, "cannot be used"),
        (np.zeros((3, 40, 30), "uint8"), r"not \(3, 40, 30\) of uint8"),
        (np.zeros((40, 30, 3)), "of float64"),
        (7, "not int"),
    ],
)
def test_an_image_that_cannot_be_used_is_an_image_error(model: vqa.VQAModel, image: object, words: str) -> None:
    with pytest.raises(vqa.errors.ImageError, match=words):
        model.ask(image, "What?")  # type: ignore[call-overload]
    assert issubclass(vqa.errors.ImageError, vqa.errors.VQAError)


def test_importing_vqa_shows_what_it_offers_and_loads_no_torch() -> None:
    program = (
        "import sys, vqa; names = dir(vqa); assert 'torch' not in sys.modules\n"
        "try: vqa.load('/no/such/folder')\n"
        "except vqa.errors.ModelError as error: print(*names, error)\n"
        "assert 'torch' not in sys.modules, 'a wrong name is known before anything is loaded'"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Answer VQAModel answer errors load There is no /no/such/folder")
    assert set(vqa.__all__) <= set(dir(vqa))
    assert all(getattr(vqa, name).__doc__ for name in vqa.__all__)
