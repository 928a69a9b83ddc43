"""What is made of people's verdicts: who counts, what is refused, what a model's accuracy against people is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.outcomes import UserError
from data_prep.records import Example
from tests.vqa.evaluation.rows import examples
from vqa.audit.results import AuditResult, audit_result
from vqa.audit.sampling import Sample, draw
from vqa.audit.verdicts import People, Verdict, read_verdicts

ROWS = examples(40)


def sample_of(rows: list[Example], count: int) -> Sample:
    return draw([(e.id, e.question_type) for e in rows], count, 0)


def result(people: dict[str, dict[str, Verdict]], answers: dict[str, str], count: int = 200) -> AuditResult:
    groups = {"question type": {e.id: e.question_type for e in ROWS}}
    return audit_result(sample_of(ROWS, count), People("s", people), ROWS, groups, {("blip", "lora"): answers})


def file(path: Path, person: str, verdicts: dict[str, str], sample: str = "s") -> Path:
    said = {question: {"verdict": verdict} for question, verdict in verdicts.items()}
    path.write_text(json.dumps({"sample": sample, "person": person, "verdicts": said}))
    return path


def test_two_peoples_files_are_merged_and_their_agreement_is_told(tmp_path: Path) -> None:
    ids = [e.id for e in ROWS]
    ada = file(tmp_path / "a.json", "Ada", {q: "wrong" if i % 4 == 0 else "right" for i, q in enumerate(ids)})
    bob = file(tmp_path / "b.json", "", {q: "wrong" if i % 2 == 0 else "right" for i, q in enumerate(ids[:100])})
    people = read_verdicts([ada, bob])
    assert {name: len(said) for name, said in people.verdicts.items()} == {"Ada": 200, "b": 100}
    found = result(people.verdicts, {})
    (pair,) = found.agreement
    assert (pair.people, pair.questions, pair.same) == (("Ada", "b"), 100, 75)
    assert pair.kappa == pytest.approx(0.5)
    # Of the first hundred a half counts where one of both says so, of the others Ada alone decides.
    assert found.error.mean == pytest.approx((25 + 12.5 + 25) / 200)


def test_a_model_is_right_where_the_person_says_so() -> None:
    said = {e.id: Verdict("right") for e in ROWS}
    said[ROWS[0].id], said[ROWS[1].id] = Verdict("wrong", "mauve"), Verdict("wrong")
    said[ROWS[2].id], said[ROWS[3].id] = Verdict("unseen"), Verdict("bad")
    generated = {e.id: e.answer for e in ROWS}
    parrot = result({"Ada": said}, generated).models[0]
    assert parrot.generated.mean == 1.0
    assert parrot.people.mean == pytest.approx(196 / 200)
    assert parrot.people_alone.mean == pytest.approx(196 / 200)
    knows = result({"Ada": said}, {**generated, ROWS[0].id: "Mauve."}).models[0]
    assert knows.people.mean == pytest.approx(197 / 200)
    assert result({"Ada": said}, generated).answerable.mean == pytest.approx(197 / 200)


def test_error_is_told_by_group_and_kind() -> None:
    said = {e.id: Verdict("wrong" if e.question_type == "count" else "right") for e in ROWS}
    found = result({"Ada": said}, {})
    by = {group.group: group.error.mean for group in found.by["question type"]}
    assert by == {"color": 0.0, "shape": 0.0, "count": 1.0}
    assert found.verdicts["wrong"].mean == found.error.mean == pytest.approx(40 / 200)
    assert found.verdicts["bad"].mean == 0.0


def test_questions_that_a_model_did_not_answer_say_nothing_about_it() -> None:
    said = {e.id: Verdict("right") for e in ROWS}
    model = result({"Ada": said}, {e.id: e.answer for e in ROWS[:50]}).models[0]
    assert (model.judged, model.generated.questions, model.people.mean) == (50, 50, 1.0)


def test_verdicts_on_questions_that_were_not_drawn_do_not_count() -> None:
    sample = sample_of(ROWS, 30)
    said = {e.id: Verdict("wrong") for e in ROWS}
    found = result({"Ada": said}, {}, count=30)
    assert found.judged == found.people["Ada"] == found.drawn == len(sample.ids) == 30


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "is no file of verdicts"),
        ("not json", "is no file of verdicts"),
        ('{"sample": "s", "verdicts": {"q": {"verdict": "maybe"}}}', "unknown verdict 'maybe'"),
    ],
)
def test_what_is_no_file_of_verdicts_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=says):
        read_verdicts([tmp_path / "x.json"])


def test_files_of_different_samples_or_one_person_twice_are_refused(tmp_path: Path) -> None:
    one = file(tmp_path / "a.json", "Ada", {"q": "right"})
    with pytest.raises(UserError, match="different samples"):
        read_verdicts([one, file(tmp_path / "b.json", "Bob", {"q": "right"}, sample="other")])
    with pytest.raises(UserError, match="another file is Ada's"):
        read_verdicts([one, file(tmp_path / "c.json", "Ada", {"q": "right"})])
    with pytest.raises(UserError, match="Cannot read"):
        read_verdicts([tmp_path / "missing.json"])
