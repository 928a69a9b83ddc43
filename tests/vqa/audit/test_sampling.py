"""The sample that people judge: stratified, stable, in random order."""

from __future__ import annotations

from collections import Counter

from vqa.audit.sampling import POOLED, allocate, draw, stratum

QUESTIONS = [
    (f"q{i}", stratum(kind, "contested" if i % 10 == 0 else "agreed"))
    for i, kind in enumerate(["color"] * 600 + ["count"] * 300 + ["shape"] * 100 + ["brand"] * 5)
]


def test_it_has_as_many_as_asked_for_once_each_and_the_same_every_time() -> None:
    sample = draw(QUESTIONS, 200, seed=0)
    assert len(set(sample.ids)) == len(sample.ids) == 200
    assert draw(QUESTIONS[::-1], 200, seed=0).ids == sample.ids
    assert set(draw(QUESTIONS, 200, seed=1).ids) != set(sample.ids)
    assert sum(one.questions for one in sample.strata.values()) == len(QUESTIONS)
    assert Counter(sample.stratum_of[q] for q in sample.ids) == {n: s.drawn for n, s in sample.strata.items()}


def test_contested_questions_are_drawn_more_often_and_no_stratum_is_left_out() -> None:
    strata = draw(QUESTIONS, 100, seed=0).strata
    rate = {name: one.drawn / one.questions for name, one in strata.items()}
    assert rate["color, contested"] > 2 * rate["color, agreed"]
    assert all(one.drawn >= min(2, one.questions) for one in strata.values())


def test_types_with_few_questions_are_pooled() -> None:
    assert stratum(POOLED, "agreed") in draw(QUESTIONS, 100, seed=0).strata
    assert not any(name.startswith("brand") for name in draw(QUESTIONS, 100, seed=0).strata)


def test_the_first_ones_are_a_random_part() -> None:
    sample = draw(QUESTIONS, 200, seed=0)
    early, all_ = (Counter(sample.stratum_of[q] for q in ids) for ids in (sample.ids[:100], sample.ids))
    assert 0.3 < early["color, agreed"] / all_["color, agreed"] < 0.7


def test_all_are_drawn_where_there_are_no_more() -> None:
    assert len(draw(QUESTIONS, 5_000, seed=0).ids) == len(QUESTIONS)
    assert allocate({"a": 1, "b": 3}, 10) == {"a": 1, "b": 3}
    assert draw([], 10, seed=0).ids == []
