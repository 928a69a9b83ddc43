"""``launch.py predict`` and ``merge``, as typed: several questions, a run as the adapter, nothing overwritten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import launch, output, tiny_base
from tests.vqa.models.test_lora import adapted
from tests.vqa.tiny_models import noise_images

pytestmark = pytest.mark.xdist_group("torch")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What predict needs of a run: a trained adapter."""
    run = tmp_path_factory.mktemp("predict") / "run"
    adapted(tiny_base(), run / "6_train/blip/adapter")
    (run / "run.json").write_text("{}")
    for number, image in enumerate(noise_images()[:2]):
        image.save(run.parent / f"{number}.png")
    return run


def test_every_question_is_asked_about_every_image_and_nothing_else_is_said(run: Path) -> None:
    images, questions = [str(run.parent / f"{n}.png") for n in (0, 1)], ["What color is it?", "Is it round?"]
    asked = [word for image in images for word in ("--image", image)]
    asked += [word for question in questions for word in ("--question", question)]
    done = launch("predict", "--adapter", run, *asked)
    assert (done.returncode, done.stderr) == (0, ""), output(done)
    expected = [f"{image}  {question}  " for image in images for question in questions]
    lines = done.stdout.splitlines()
    assert all(line.startswith(words) for line, words in zip(lines, expected, strict=True)), done.stdout
    assert all(re.search(r" \([01]\.\d\d\)$", line) for line in lines), done.stdout


def test_an_output_that_is_there_is_kept_unless_it_may_be_replaced(run: Path, tmp_path: Path) -> None:
    table, answers = tmp_path / "asked.csv", tmp_path / "answers.csv"
    table.write_text("image_name,question\n0.png,What?\n")
    answers.write_text("hours of work")
    asked = ("predict", "--adapter", run, "--csv_path", table, "--image_dir", run.parent, "--output", answers)
    refused = launch(*asked)
    assert refused.returncode == 2 and "--overwrite" in output(refused)
    assert answers.read_text() == "hours of work"
    done = launch(*asked, "--overwrite")
    assert (done.returncode, done.stderr) == (0, ""), output(done)
    assert answers.read_text().startswith("image_name,question,answer,generated_answer,confidence\n0.png,What?,,")


def test_merge_takes_a_run_and_says_one_line(run: Path, tmp_path: Path) -> None:
    done = launch("merge", "--adapter", run, "--output", tmp_path / "merged")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"The merged model is in {tmp_path}/merged\n", "")
    again = launch("merge", "--adapter", run, "--output", tmp_path / "merged")
    assert again.returncode == 2 and "is there already" in output(again)
