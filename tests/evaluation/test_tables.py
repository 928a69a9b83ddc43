"""Scoring any table, comparing runs, answering a CSV file: right figures, and clear words for wrong input."""

from __future__ import annotations

import csv
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from data_prep.records import Emit, Example, Failed, Ok, Prediction, UserError
from tests.evaluation.rows import examples, predictions, write_pictures
from vqa.compare import compare
from vqa.compare import render as render_comparison
from vqa.predict import predict
from vqa.score import render, score_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    path.write_text('item_id,question,answer,generated_answer\n1,a?,red,Red\n1,b?,two,2\n2,"c, d?",round,\n')
    return path


def test_a_csv_table_is_scored_with_intervals_by_product(table: Path) -> None:
    found = score_table(table, "answer", "generated_answer")
    assert found["metrics"]["exact_match"]["mean"] == pytest.approx(2 / 3)
    assert (found["cluster"], found["clusters"], found["empty_answers"]) == ("item_id", 2, 1)
    assert "Exact match (VQA-normalised)     0.6667" in render(found)


def test_jsonl_gives_the_figures_of_csv(table: Path) -> None:
    lines = table.with_suffix(".jsonl")
    lines.write_text(
        '{"item_id": 1, "answer": "red", "generated_answer": "Red"}\n'
        '{"item_id": 1, "answer": "two", "generated_answer": 2}\n\n'
        '{"item_id": 2, "answer": "round", "generated_answer": null}\n'
    )
    assert (
        score_table(lines, "answer", "generated_answer")["metrics"]
        == score_table(table, "answer", "generated_answer")["metrics"]
    )


def test_a_wrong_column_lists_the_columns_and_names_the_nearest(table: Path) -> None:
    with pytest.raises(
        UserError, match=r"no column 'generated'.*item_id, question.*Did you mean --prediction generated_answer"
    ):
        score_table(table, "answer", "generated")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "answer,p\n", "no rows"),
        ("a.csv", "answer,p\nred,blue,green\n", r"a\.csv:2: more values than columns"),
        ("a.jsonl", '{"answer": "red", "p": "x"}\n{"answer', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", "must be a JSON object"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        score_table(tmp_path / name, "answer", "p")


def test_a_missing_table_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        score_table(tmp_path / "no.csv", "a", "b")


def test_runs_are_compared_on_the_questions_they_share() -> None:
    rows = examples(30)
    a, b = predictions(rows[:120], 0.3), predictions(rows[20:], 0.9, seed=2)
    found = compare(a, b)
    assert (found["shared"], found["only"]) == (100, [20, 30])
    assert found["paired"]["difference"]["low"] > 0
    assert "100 shared questions about 20 products" in render_comparison(found)


def test_a_question_whose_truth_changed_is_left_out_and_counted() -> None:
    a = [Prediction("1", "p", "i", "q", "red", "red"), Prediction("2", "p", "i", "q", "blue", "red")]
    b = [Prediction("1", "p", "i", "q", "red", "red"), Prediction("2", "p", "i", "q", "teal", "red")]
    assert (compare(a, b)["shared"], compare(a, b)["other_truth"]) == (1, 1)


def test_runs_without_a_shared_question_say_so() -> None:
    with pytest.raises(UserError, match="share no question"):
        compare(predictions(examples(1), 1.0), [])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers every picture it can find with "red"; the real ones are tested where they are written."""

    class Answerer:
        def __init__(
            self, model: object, adapters: Mapping[str, Path | None], settings: object, image_root: Path
        ) -> None:
            self.image_root = image_root

        def process(
            self, items: Iterator[Example], emits: Mapping[str, Emit], wanted: Callable[[str, str], bool]
        ) -> None:
            for e in items:
                for emit in emits.values():
                    known = (self.image_root / e.image_path).is_file()
                    emit(e.id, Ok({"answer": "red", "confidence": 0.5}) if known else Failed("image_missing"))

    inference, settings = types.ModuleType("vqa.inference"), types.ModuleType("vqa.settings")
    inference.Answerer = Answerer  # type: ignore[attr-defined]
    settings.EvaluateSettings = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqa.inference", inference)
    monkeypatch.setitem(sys.modules, "vqa.settings", settings)


@pytest.mark.usefixtures("model")
def test_a_missing_picture_gives_an_empty_answer_a_warning_and_an_exit_code(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", examples(2))
    asked = tmp_path / "asked.csv"
    asked.write_text('image_name,question,answer\n1/1.jpg,"Red, or blue?",red\nno.jpg,What?,\n0/0.jpg,What?,blue\n')
    warned: list[str] = []
    found = predict(None, None, tmp_path / "images", asked, tmp_path / "out.csv", warn=warned.append)  # type: ignore[arg-type]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image_name", "question", "answer", "generated_answer"],
        ["1/1.jpg", "Red, or blue?", "red", "red"],
        ["no.jpg", "What?", "", ""],
        ["0/0.jpg", "What?", "blue", "red"],
    ]
    assert found.exit_code == 1
    assert warned == found.problems == ["row 2, no.jpg: image_missing"]


def test_importing_the_package_and_scoring_do_not_import_torch(table: Path) -> None:
    program = (
        "import sys, pathlib, vqa, vqa.api, vqa.compare, vqa.predict, vqa.report, vqa.score\n"
        f"vqa.score.score_table(pathlib.Path({str(table)!r}), 'answer', 'generated_answer')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0
