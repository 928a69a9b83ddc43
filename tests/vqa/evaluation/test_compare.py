"""The leaderboard: only the same questions are paired, what is left out is counted, and figures are those of each model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from data_prep.files import write_jsonl
from data_prep.outcomes import UserError
from data_prep.records import Answered, Example
from jobs.config import validate_config
from jobs.options import CompareRequest
from jobs.run.layout import RunDir
from jobs.run.run import open_run
from jobs.verbs.results import score as verb
from tests.conftest import SHARED, launch
from tests.vqa.evaluation.rows import examples, predictions
from vqa.evaluation.compare import BEST, compare, headline, left_out, pair_facts
from vqa.evaluation.entries import TABLE, Columns, Entry, short_names, table_entry
from vqa.evaluation.score import score_table
from vqa.report.leaderboard import write_page

OUTPUTS = SHARED / "model_outputs"
MODELS = ("preds_blip.csv", "preds_vilt.csv", "preds_vilt_ft.csv", "preds_blip_ft.csv")


def entry(name: str, answers: Sequence[Answered]) -> Entry:
    return Entry(name, TABLE, answers)


def answered(*rows: str) -> list[Answered]:
    """Answers to "id truth answer" about one image each, all with the same words."""
    return [
        Answered(key, f"item-{key}", f"{key}.jpg", "What is it?", truth, answer)
        for key, truth, answer in (row.split() for row in rows)
    ]


def table(path: Path, rows: Sequence[Answered], image: str = "image_name") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([image, "question", "answer", "generated_answer"])
        writer.writerows([p.image_id, p.question, p.truth, p.answer] for p in rows)
    return path


def test_entries_are_ranked_on_the_questions_that_all_answered() -> None:
    rows = examples(30)
    low, high = predictions(rows[:120], 0.3), predictions(rows[20:], 0.9, seed=2)
    board = compare([entry("low", low), entry("high", high), entry("none", predictions(rows, 0.0, seed=3))])
    assert (board.questions, board.groups, board.reference) == (100, 20, "low")
    assert [one.name for one in board.standings] == ["high", "low", "none"]
    assert {one.name: one.unshared for one in board.standings} == {"low": 20, "high": 30, "none": 50}
    best = board.standings[0]
    assert best.versus and best.versus.significant and best.versus.paired.difference.low > 0  # type: ignore[operator]
    assert board.standings[1].versus is None
    assert headline(board).startswith("high is first with")
    assert "none: 50 not answered by all" in left_out(board)


def test_p_values_are_corrected_for_the_number_of_entries() -> None:
    rows = examples(40)
    entries = [entry(str(n), predictions(rows, 0.3 + 0.1 * n, seed=n)) for n in range(4)]
    found = [one.versus for one in compare(entries).standings if one.versus]
    assert len(found) == 3
    assert min(found, key=lambda v: v.p).p_corrected == pytest.approx(3 * min(v.p for v in found))
    alone = compare(entries[:2]).standings
    assert all(one.versus.p_corrected == one.versus.p for one in alone if one.versus)


def test_the_reference_is_the_first_or_the_best_or_one_that_is_named() -> None:
    entries = [entry(name, predictions(examples(20), share)) for name, share in (("a", 0.2), ("b", 0.9), ("c", 0.5))]
    assert [compare(entries, against).reference for against in (None, BEST, "c")] == ["a", "b", "c"]
    with pytest.raises(UserError, match="Known: best, a, b, c"):
        compare(entries, "d")


def test_two_entries_have_the_facts_of_a_pair() -> None:
    a = answered("1 red red", "2 red blue", "3 red red", "4 red blue", "5 red teal")
    b = answered("1 red red", "2 red red", "3 red blue", "4 red red", "5 red teal")
    board = compare([entry("a", a), entry("b", b)])
    said = " ".join(pair_facts(board))
    assert "only b right: 2; only a right: 1; same answer: 2" in said
    assert "McNemar p = 1" in said and "can show" in said
    assert pair_facts(compare([entry("a", a), entry("b", b), entry("c", b)])) == []


def test_a_question_with_another_truth_is_counted_and_never_paired() -> None:
    a, b = answered("1 red red", "2 blue blue"), answered("1 red red", "2 teal blue")
    board = compare([entry("a", a), entry("b", b)])
    assert (board.questions, board.other_truth) == (1, 1)
    assert "1 shared questions whose truths differ" in left_out(board)


def test_one_table_with_two_truths_for_a_question_is_not_paired_on_it() -> None:
    a = answered("1 red red", "1 blue blue", "2 red red", "2 red teal")
    board = compare([entry("a", a), entry("b", answered("1 red red", "2 red red"))])
    assert (board.questions, board.other_truth, board.standings[0].repeated) == (1, 1, 2)
    assert board.standings[0].exact_match.mean == 1.0  # of a repeated question the first answer counts


def test_ids_that_stand_for_other_questions_are_not_paired() -> None:
    a = answered("1 yes yes", "2 red red")
    b = [*answered("2 red blue"), Answered("1", "p", "9.jpg", "Is it round?", "yes", "yes")]
    board = compare([entry("a", a), entry("b", b)])
    assert (board.joined_by, board.questions, board.other_question) == ("id", 1, 1)


def test_tables_without_ids_are_joined_by_image_and_question(tmp_path: Path) -> None:
    rows = answered("1 red red", "2 red blue", "3 blue blue")
    one = table_entry("one", table(tmp_path / "one.csv", rows), Columns())
    two = table_entry("two", table(tmp_path / "two.csv", rows[:2], "filename"), Columns())
    run = Entry("run", "lora", [Answered("x", "p", "a/1.jpg", "what  is it?", "red", "blue")])
    board = compare([one, two, run])
    assert (board.joined_by, board.questions, board.grouped_by) == ("image and question", 1, "item_id")
    assert compare([one, two]).grouped_by == "image_name"


def test_images_of_one_name_in_two_folders_are_not_one_image() -> None:
    a, b = (
        [Answered("", "", image, "What is it?", "red", "red") for image in (f"{folder}/1.jpg", "c/2.jpg")]
        for folder in "ab"
    )
    assert compare([entry("a", a), entry("b", b)]).questions == 1


def test_rows_without_a_truth_are_left_out_of_a_comparison_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,answer,generated_answer\n1,red,red\n2,,red\n")
    (tmp_path / "b.csv").write_text("id,answer,generated_answer\n1,red,\n2,blue,red\n")
    a, b = (table_entry(name, tmp_path / f"{name}.csv", Columns()) for name in "ab")
    assert left_out(compare([a, b])) == ["a: 1 without a truth", "b: 1 not answered by all"]


def test_entries_without_a_shared_question_say_so() -> None:
    with pytest.raises(UserError, match=r"No question is shared by all of a \(1 answers\), b \(1 answers\)"):
        compare([entry("a", answered("1 red red")), entry("b", answered("2 red red"))])
    with pytest.raises(UserError, match="1 have different truths"):
        compare([entry("a", answered("1 red red")), entry("b", answered("1 blue red"))])
    with pytest.raises(UserError, match="name two or more"):
        compare([entry("a", answered("1 red red"))])


def test_names_are_file_names_and_paths_where_two_are_alike() -> None:
    assert short_names([Path("x/a.csv"), Path("y/a.csv"), Path("x/b.csv")]) == ["x/a.csv", "y/a.csv", "b.csv"]
    with pytest.raises(UserError, match="more than once"):
        short_names([Path("a.csv"), Path("./a.csv")])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run of two models with splits; blip has both variants, vilt the base only."""
    config = validate_config({"data": {"root": str(tmp_path)}, "models": {"blip": {}, "vilt": {"kind": "vilt"}}}, "x")
    run, _ = open_run(tmp_path / "demo", config, [])
    rows = examples(30)
    for name in ("train", "val", "test"):
        write_jsonl(run.split(name), rows)
    answers = {
        "blip-base": predictions(rows, 0.2),
        "blip-lora": predictions(rows, 0.8),
        "vilt-base": predictions(rows, 0.1),
    }
    monkeypatch.setattr(
        verb.Evaluate, "answers", lambda self, kind: (answers.get(f"{self.target}-{kind}", []), {"x": 2})
    )
    return run


def shown(out: Path, *sources: Path, width: int = 80, **options: object) -> str:
    with out.open("w") as file:
        request = CompareRequest(sources=list(sources), **options)  # type: ignore[arg-type]
        verb.compare(request, Console(file=file, width=width, soft_wrap=True, highlight=False))
    return out.read_text()


def test_a_run_brings_all_its_models_and_its_blind_floor(run: RunDir, tmp_path: Path) -> None:
    said = shown(tmp_path / "out.txt", run.path)
    for name in ("demo blip-base", "demo blip-lora", "demo vilt-base", "demo blind floor"):
        assert name in said
    assert "vilt-lora" not in said and "demo blip-lora: 2 without an answer" in said
    chosen = shown(tmp_path / "out.txt", run.path, model="blip", variant="lora", against="demo blind floor")
    assert "blip-base" not in chosen and "vilt" not in chosen and "demo blip-lora is first" in chosen
    for wrong, words in (
        ({"model": "git"}, "--model"),
        ({"variant": "both"}, "--variant"),
        ({"model": "vilt", "variant": "lora"}, "vilt-lora yet"),
    ):
        with pytest.raises(UserError, match=words):
            shown(tmp_path / "out.txt", run.path, **wrong)


def test_two_runs_of_one_dataset_have_one_blind_floor(run: RunDir, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "again")
    said = shown(tmp_path / "out.txt", run.path, tmp_path / "again", variant="base")
    assert said.count("blind floor") == 1 and "again vilt-base" in said


def test_a_table_is_compared_with_a_run_by_its_image_names(run: RunDir, tmp_path: Path) -> None:
    rows = [Answered("", "", Path(e.image_path).name, e.question, e.answer, e.answer) for e in _test_rows(run)]
    said = shown(tmp_path / "out.txt", run.path, table(tmp_path / "mine.csv", rows))
    assert "mine.csv is first with 100.0 % right" in said
    assert "150 shared questions, joined by image and question; 95 % intervals over 30 groups by item_id" in said


def _test_rows(run: RunDir) -> list[Example]:
    return [Example(**json.loads(line)) for line in run.split("test").read_text().splitlines()]


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_fits_the_terminal(run: RunDir, tmp_path: Path, width: int) -> None:
    said = shown(tmp_path / "out.txt", run.path, width=width).splitlines()
    start = next(i for i, line in enumerate(said) if "exact match %" in line)
    assert all(len(line) <= width for line in said[start : start + 6])
    assert any(line.startswith(" demo blip-lora ") for line in said[start:])  # not squeezed into a few columns


def test_json_and_page_from_the_command_line(tmp_path: Path) -> None:
    rows = examples(20)
    evil = "<script>alert(1)</script>.csv"
    paths = [table(tmp_path / name, predictions(rows, share)) for name, share in (("a.csv", 0.3), ("b.csv", 0.9))]
    page = tmp_path / "new" / "page.html"
    done = launch("compare", *paths, "--json", "--output", page)
    assert done.returncode == 0, done.stderr
    board = orjson.loads(done.stdout)
    assert [one["name"] for one in board["standings"]] == ["b.csv", "a.csv"]
    assert board["standings"][0]["versus"]["paired"]["mcnemar"].keys() == {"fixed", "broken", "p"}
    text = page.read_text()
    assert "b.csv is first with" in text and "<script" not in text and "http" not in text.replace("http-equiv", "")
    write_page(compare([entry(evil, predictions(rows, 0.5)), entry("b", predictions(rows, 0.5, seed=2))]), page)
    assert "<script" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such.csv", "/no/other.csv"], "There is no file /no/such.csv"),
        (["a.csv", "a.csv"], "more than once"),
        ([str(SHARED.parent)], "is not a run directory"),
    ],
)
def test_wrong_sources_are_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = launch("compare", *arguments)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.skipif(not OUTPUTS.is_dir(), reason="no shared/model_outputs beside the repository")
def test_published_answers_are_ranked_and_the_collapsed_adapter_is_named() -> None:
    board = compare([table_entry(name, OUTPUTS / name, Columns()) for name in MODELS])
    assert board.questions == 3_274  # the fine-tuned BLIP was asked other questions
    assert [one.name for one in board.standings] == ["preds_blip_ft.csv", *MODELS[:3]]
    for one in board.standings:
        alone = score_table(OUTPUTS / one.name, "answer", "generated_answer").scores.metrics["exact_match"]
        assert one.on_all == alone
        assert ("count" in one.collapsed) == (one.name == "preds_vilt_ft.csv")
    counts = next(group for group in board.by_question_type if group.group == "count")
    assert counts.variants["preds_vilt_ft.csv"].mean == 0.0
