"""Which answers count as the same, and that the table says why."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from data_prep.verify.equivalents import EQUIVALENTS_FILE, canonical, same_answer

GROUPS = yaml.safe_load(EQUIVALENTS_FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("Grey", "gray"), ("sofa", "couch"), ("four", "4"), ("12", "dozen"), ("buttons", "button"), ("The mug.", "mug")],
)
def test_spelling_number_and_plural_do_not_make_another_answer(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), [("navy", "blue"), ("left", "right"), ("glass", "gla"), ("two", "three")])
def test_what_is_merely_similar_is_another_answer(one: str, other: str) -> None:
    assert not same_answer(one, other)


def test_no_answer_equals_nothing() -> None:
    assert not same_answer("", "") and not same_answer(" ", "red")


def test_every_group_says_why_and_no_word_is_in_two_groups() -> None:
    assert all(len(group["words"]) > 1 and group["why"].endswith(".") for group in GROUPS)
    counts = Counter(word for group in GROUPS for word in group["words"])
    assert [word for word, count in counts.items() if count > 1] == []
    for group in GROUPS:
        assert len({canonical(word) for word in group["words"]}) == 1, group
