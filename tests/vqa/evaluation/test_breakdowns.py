"""Breakdowns count every question once."""

from __future__ import annotations

import numpy as np

from tests.vqa.evaluation.rows import examples, predictions
from vqa.evaluation.breakdowns import by_group, confusions, error_kind, frequency_class


def test_groups_add_up_to_all_questions() -> None:
    labels = [str(i % 30) for i in range(300)]
    rows = by_group(labels, {"base": np.ones(300)}, np.arange(300), most=10)
    assert sum(row.questions for row in rows) == 300
    assert rows[-1].group == "20 others"


def test_answers_are_classed_by_how_often_training_had_them() -> None:
    trained = {"red": 10, "teal": 1}
    classes = [frequency_class(truth, trained) for truth in ("Red", "teal", "mauve")]
    assert classes == ["frequent (10 or more)", "rare (1 to 9)", "never in training"]


def test_confusions_count_wrong_answers_only() -> None:
    rows = predictions(examples(40), right=0.5)
    wrong = sum(p.truth != p.answer for p in rows)
    found = confusions(rows, most=1000)
    assert sum(c.questions for c in found) == wrong
    assert all(c.truth != c.answer for c in found)


def test_wrong_answers_get_the_kind_that_their_words_suggest() -> None:
    assert error_kind("red", "") == "empty"
    assert error_kind("knitted", "knit") == "fine-grained"
    assert error_kind("two", "5") == "fine-grained"
    assert error_kind("round", "oval") == "visually similar"
    assert error_kind("sofa", "couch", {"sofa", "couch"}) == "ambiguous description"
    assert error_kind("sofa", "couch") == "other"
