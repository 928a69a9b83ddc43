"""The report's section on trust: every score on all questions and on agreed ones, guessability against chance, people."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.records import Answered, Example, Opinions
from tests.vqa.evaluation.rows import examples, predictions
from vqa.audit.results import audit_result
from vqa.audit.sampling import draw
from vqa.audit.verdicts import People, Verdict
from vqa.evaluation.metrics import exact_match
from vqa.report.build import build
from vqa.report.inputs import ReportInputs
from vqa.report.truth import guessable, parts

ROWS = examples(60)
OPINIONS = {
    e.id: Opinions(
        seen="agreed" if i % 4 else "contested",
        blind="right" if i % 5 == 0 else "wrong",
        witness=("agrees", "silent", "differs")[i % 3],
    )
    for i, e in enumerate(ROWS)
}


def answered(right: float, seed: int) -> list[Answered]:
    return predictions(ROWS, right, seed)


def test_scores_are_given_on_all_and_on_agreed_questions_with_how_many_of_each() -> None:
    said = {"lora": [(e, p.answer) for e, p in zip(ROWS, answered(0.6, 1), strict=True)]}
    found = {part.name: part for part in parts(said, OPINIONS, None)}
    assert {name: part.questions for name, part in found.items()} == {
        "all": 300,
        "agreed": 225,
        "contested": 75,
        "not guessed blind": 240,
    }
    agreed = [exact_match(e.answer, answer) for e, answer in said["lora"] if OPINIONS[e.id].seen == "agreed"]
    metric = found["agreed"].metrics["lora"]["exact_match"]
    assert not isinstance(metric, float) and metric.mean == sum(agreed) / 225 and metric.low is not None
    assert found["all"].metrics["lora"].keys() == found["agreed"].metrics["lora"].keys()
    assert parts(said, {}, None) == []


def test_a_type_is_as_guessable_as_it_is_answered_blind_against_its_chance() -> None:
    rows = [Example(f"{i}", f"p{i}", "i", "", "Is it?", ("yes", "no")[i % 2], "", "yes/no", "") for i in range(40)]
    said = {e.id: Opinions(blind="right" if i < 30 else "wrong") for i, e in enumerate(rows)}
    (found,) = guessable(rows, rows, said)
    assert (found.chance, found.right.mean, found.right.questions) == (0.5, 0.75, 40)
    assert guessable(rows, rows, {e.id: Opinions() for e in rows}) == []


def test_the_page_crosses_scores_with_opinions_and_says_what_people_say(tmp_path: Path) -> None:
    variants = {"base": answered(0.2, 1), "lora": answered(0.7, 2)}
    sample = draw([(e.id, e.question_type) for e in ROWS], 50, 0)
    ada = {q: Verdict("wrong" if i % 5 == 0 else "right") for i, q in enumerate(sample.ids)}
    bob = {q: Verdict("bad" if i % 7 == 0 else "right") for i, q in enumerate(sample.ids)}
    answers = {("blip", v): {p.id: p.answer for p in given} for v, given in variants.items()}
    groups = {"question type": {e.id: e.question_type for e in ROWS}, "seen": {q: o.seen for q, o in OPINIONS.items()}}
    audit = audit_result(sample, People("s", {"Ada": ada, "Bob": bob}), ROWS, groups, answers)
    twice = {"products": 7, "asked_both_times": 30, "same_answer_share": 0.9}
    build(
        ReportInputs(
            test=ROWS,
            train=examples(60, seed=4),
            predictions={"blip": variants},
            opinions=OPINIONS,
            audit=audit,
            stats={"self_consistency": twice},
        ),
        tmp_path,
    )
    figures, page = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "index.html").read_text()
    assert figures["truth"]["opinions"]["seen"] == {"agreed": 225, "contested": 75}
    by = figures["models"]["blip"]["breakdowns"]["another model, with the image and without the listing"]
    assert {group["group"]: group["questions"] for group in by} == {"agreed": 225, "contested": 75}
    assert (
        figures["truth"]["audit"]["models"][1]["people"]["mean"]
        < figures["truth"]["audit"]["models"][1]["generated"]["mean"]
    )
    for words in (
        "What people say",
        "prediction-powered inference",
        "Self-consistency",
        "were asked about twice",
        "Chance",
    ):
        assert words in page


def test_where_nobody_has_checked_the_page_says_how_to(tmp_path: Path) -> None:
    build(ReportInputs(test=ROWS, predictions={"blip": {"base": answered(0.2, 1)}}), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["truth"] is None
    assert "Nobody has checked the generated answers" in (tmp_path / "index.html").read_text()
