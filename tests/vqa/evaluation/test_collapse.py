"""The alarm is raised by models that stopped answering, and by no good model, nor by the truth itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import SHARED
from vqa.evaluation.collapse import MIN_QUESTIONS, alarm, spread, spreads
from vqa.evaluation.score import render, score_table

OUTPUTS = SHARED / "model_outputs"
real = pytest.mark.skipif(not OUTPUTS.is_dir(), reason=f"needs {OUTPUTS}, real predictions outside of the project")


def truths(count: int) -> list[str]:
    draw = random.Random(0)
    return [draw.choice(("one", "two", "two", "three")) for _ in range(count)]


def test_one_answer_to_everything_is_named_with_its_number() -> None:
    found = spreads(("count", truth, "Three.") for truth in truths(247))
    assert alarm(found) == 'count (247 of 247 answers are "Three.")'
    assert (found["count"].distinct, found["count"].entropy) == (1, 0.0)


def test_pieces_of_words_and_empty_answers_are_no_words() -> None:
    pairs = [
        (truth, answer)
        for truth, answer in zip(truths(60), (["##x", "", "?", "two", "one", "three"]) * 10, strict=True)
    ]
    assert '30 of 60 answers are no words, such as "##x"' in spread(pairs).signs
    assert not spread([(a, a) for _, a in pairs]).signs, "the truth itself has them"


def test_a_handful_of_words_where_the_truth_has_hundreds_is_a_collapse() -> None:
    pairs = [(f"word{n}", ("leather", "fabric", "metal")[n % 3]) for n in range(300)]
    assert spread(pairs).signs == ["3 different answers where the truth has 300"]


def test_the_truth_and_a_model_with_a_bias_raise_no_alarm() -> None:
    pairs = [(truth, "two" if n % 3 == 0 else truth) for n, truth in enumerate(truths(300))]
    assert not spread(pairs).signs
    assert not spread([(truth, truth) for truth, _ in pairs]).signs


def test_a_lopsided_truth_may_be_answered_lopsidedly() -> None:
    assert not spread([("yes" if n % 5 else "no", "yes") for n in range(100)]).signs


def test_a_few_answers_prove_nothing() -> None:
    assert not spread([(t, "two") for t in truths(MIN_QUESTIONS - 1)]).signs


@real
@pytest.mark.parametrize("file", ["preds_blip.csv", "preds_blip_ft.csv", "preds_vilt.csv"])
def test_real_models_that_did_not_collapse_raise_no_alarm(file: str) -> None:
    assert "collapsed" not in render(score_table(OUTPUTS / file, "answer", "generated_answer"))


@real
def test_the_published_vilt_adapter_is_named_as_collapsed_on_its_counts() -> None:
    found = score_table(OUTPUTS / "preds_vilt_ft.csv", "answer", "generated_answer")
    assert found.answers["count"].signs == ['1,366 of 1,366 answers are "unknown"']
    assert 'count (1,366 of 1,366 answers are "unknown")' in render(found)
    assert not found.answers["color"].collapsed


def test_score_goes_by_the_words_of_the_question_and_does_without_it(tmp_path: Path) -> None:
    rows = [("How many are shown" if n % 2 else "Is it red", "yes", "three") for n in range(100)]
    for columns in (("question", "truth", "said"), ("other", "truth", "said")):
        table = tmp_path / f"{columns[0]}.csv"
        answers = ["yes", "no", "two", "one"]
        lines = [",".join(columns), *(f"{q},{answers[n % 4]},{a}" for n, (q, _, a) in enumerate(rows))]
        table.write_text("\n".join(lines))
    with_question = score_table(tmp_path / "question.csv", "truth", "said")
    assert set(with_question.answers) == {"count", "other"}, "yes/no would tell the guesser what the truth is"
    assert 'collapsed answers: all (100 of 100 answers are "three")' in render(
        score_table(tmp_path / "other.csv", "truth", "said")
    )
