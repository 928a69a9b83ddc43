"""Scoring any table, comparing runs, answering a CSV file: right figures, and clear words for wrong input."""

from __future__ import annotations

import csv
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Answered, Example
from tests.vqa.evaluation.rows import examples, write_images
from vqa.evaluation.score import render, score_table
from vqa.inference.predict import predict
from vqa.inference.source import Source

GENERATED = ("answer", "generated_answer")
SHORT = ("answer", "p")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    path.write_text('item_id,question,answer,generated_answer\n1,a?,red,Red\n1,b?,two,2\n2,"c, d?",round,\n')
    return path


def test_a_csv_table_is_scored_with_intervals_by_product(table: Path) -> None:
    found = score_table(table, *GENERATED)
    assert found.scores.metrics["exact_match"].mean == pytest.approx(2 / 3)
    assert (found.group_by, found.groups, found.scores.empty_answers) == ("item_id", 2, 1)
    assert "Exact match (VQA-normalized)     0.6667" in render(found)


def test_jsonl_gives_the_figures_of_csv(table: Path) -> None:
    lines = table.with_suffix(".jsonl")
    lines.write_text(
        '{"item_id": 1, "answer": "red", "generated_answer": "Red"}\n'
        '{"item_id": 1, "answer": "two", "generated_answer": 2}\n\n'
        '{"item_id": 2, "answer": "round", "generated_answer": null}\n'
    )
    assert score_table(lines, *GENERATED).scores == score_table(table, *GENERATED).scores


def test_a_wrong_column_lists_the_columns_and_names_the_nearest(table: Path) -> None:
    with pytest.raises(
        UserError, match=r"no column 'generated'. Did you mean 'generated_answer'\? Known: item_id, question"
    ):
        score_table(table, "answer", "generated")


@pytest.mark.parametrize("asked", ["gt_answer", "true_answer", "generated_answers", "model_outputs"])
def test_the_column_of_a_models_answers_is_never_suggested_as_the_truth(tmp_path: Path, asked: str) -> None:
    (tmp_path / "a.csv").write_text("image_name,question,generated_answer,model_output,other\n")
    for prediction in ("generated_answer", "other"):
        with pytest.raises(UserError, match=f"no column '{asked}'") as caught:
            score_table(tmp_path / "a.csv", asked, prediction)
        for column in ("'generated_answer'", " generated_answer", "model_output'", " model_output", f" {prediction}"):
            assert column not in str(caught.value)


def test_the_truth_is_never_suggested_as_the_prediction(table: Path) -> None:
    with pytest.raises(UserError, match="no column 'answers'") as caught:
        score_table(table, "answer", "answers")
    assert "'answer'" not in str(caught.value)


def test_a_column_is_not_scored_against_itself(table: Path) -> None:
    with pytest.raises(UserError, match="against itself"):
        score_table(table, "generated_answer", "generated_answer")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "answer,p\n", "no rows"),
        ("a.csv", "", "has no columns"),
        ("a.csv", "answer,p\nred,blue,green\n", r"a\.csv:2: more values than columns"),
        ("a.csv", 'answer,p\nred,"blue\ngreen,red\n', r"a\.csv:3: not CSV .*quotation mark"),
        ("a.csv", "answer,p,p\nred,blue,red\n", "has 2 columns named 'p'"),
        ("a.csv", "answer,p\n,blue\n ,red\n", "'answer' is empty in all rows"),
        ("a.jsonl", '{"answer": "red", "p": "x"}\n{"answer', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", "must be a JSON object"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        score_table(tmp_path / name, *SHORT)


def test_rows_without_a_truth_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("answer,p\nred,red\n,red\nblue,\n")
    found = score_table(tmp_path / "a.csv", *SHORT)
    assert (found.scores.questions, found.without_truth, found.scores.empty_answers) == (2, 1, 1)
    assert found.scores.metrics["exact_match"].mean == 0.5
    assert "left out: 1 rows without a truth" in render(found)


def test_a_row_that_names_no_product_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "item_id,answer,p\n" + "".join(f",red,{'red' if n % 2 else 'x'}\n" for n in range(40))
    )
    alone = score_table(tmp_path / "a.csv", *SHORT)
    assert (alone.group_by, alone.groups) == (None, 40)
    named = score_table(tmp_path / "a.csv", *SHORT, group_by="item_id")
    assert named.groups == 40


def test_one_product_has_no_interval_and_a_few_are_said_to_be_few(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,answer,p\n1,red,red\n1,blue,red\n")
    assert "0.5000  no interval: one cluster" in render(score_table(tmp_path / "a.csv", *SHORT))
    (tmp_path / "b.csv").write_text("item_id,answer,p\n1,red,red\n2,blue,red\n")
    assert "too narrow: only 2 clusters" in render(score_table(tmp_path / "b.csv", *SHORT))


def test_a_missing_table_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        score_table(tmp_path / "no.csv", *SHORT)


SOURCE = Source(None, None)  # type: ignore[arg-type]  # the model below ignores it


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers every image it can find with "red"; the real ones are tested where they are written."""

    class Answerer:
        def __init__(
            self, model: object, adapters: Mapping[str, Path | None], settings: object, image_root: Path
        ) -> None:
            self.image_root = image_root

        def process(self, todos: Iterator[Todo[Example]]) -> None:
            for todo in todos:
                e = todo.item
                answer = Answered(e.id, e.item_id, e.image_id, e.question, e.answer, "red", 0.9)
                known = (self.image_root / e.image_path).is_file()
                todo.record(Ok(answer) if known else Failed("image_missing"))

    inference = types.ModuleType("vqa.inference.answerer")
    inference.Answerer = Answerer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqa.inference.answerer", inference)


@pytest.mark.usefixtures("model")
def test_a_missing_image_gives_an_empty_answer_a_warning_and_an_exit_code(tmp_path: Path) -> None:
    write_images(tmp_path / "images", examples(2))
    asked = tmp_path / "asked.csv"
    asked.write_text('image_name,question,answer\n1/1.jpg,"Red, or blue?",red\nno.jpg,What?,\n0/0.jpg,What?,blue\n')
    warned: list[str] = []
    found = predict(SOURCE, tmp_path / "images", asked, tmp_path / "out.csv", warn=warned.append)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image_name", "question", "answer", "generated_answer", "confidence"],
        ["1/1.jpg", "Red, or blue?", "red", "red", "0.9000"],
        ["no.jpg", "What?", "", "", ""],
        ["0/0.jpg", "What?", "blue", "red", "0.9000"],
    ]
    assert found.exit_code == 1
    assert warned == found.problems == ["row 2, no.jpg: image_missing"]


@pytest.mark.usefixtures("model")
def test_what_cannot_be_written_is_noticed_before_anything_is_answered(tmp_path: Path) -> None:
    write_images(tmp_path / "images", examples(1))
    (tmp_path / "asked.csv").write_text("image_name,question\n0/0.jpg,What?\n")
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "out.csv"):
        with pytest.raises(UserError, match=r"folder"):
            predict(SOURCE, tmp_path / "images", tmp_path / "asked.csv", output, warn=pytest.fail)
    predict(SOURCE, tmp_path / "images", tmp_path / "asked.csv", tmp_path / "new/out.csv")  # type: ignore[arg-type]
    assert (tmp_path / "new/out.csv").read_text().endswith("red,0.9000\n")


@pytest.mark.usefixtures("model")
def test_a_line_that_lacks_a_field_costs_its_own_answer_and_no_other(tmp_path: Path) -> None:
    write_images(tmp_path / "images", examples(1))
    (tmp_path / "asked.jsonl").write_text('{"image_name": "0/0.jpg", "question": "What?"}\n{"question": "Where?"}\n')
    found = predict(SOURCE, tmp_path / "images", tmp_path / "asked.jsonl", tmp_path / "out.csv")  # type: ignore[arg-type]
    assert found.answers == ["red", ""] and found.exit_code == 1


def test_importing_the_package_and_scoring_do_not_import_torch(table: Path) -> None:
    program = (
        "import sys, pathlib, vqa, vqa.inference.api, vqa.evaluation.compare, vqa.inference.predict, vqa.report, vqa.evaluation.score\n"
        f"vqa.evaluation.score.score_table(pathlib.Path({str(table)!r}), *{GENERATED!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=False).returncode == 0
