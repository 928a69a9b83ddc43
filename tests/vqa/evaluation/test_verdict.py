"""Planted answers: a model gets `learned` only where it has learned to look, and each other model its own verdict."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from data_prep.curate.blind_floor import blind_answers
from data_prep.records import Example
from vqa.evaluation.metrics import exact_match
from vqa.evaluation.statistics import Interval, holm, label_codes, mcnemar, sign_flip
from vqa.evaluation.verdict import GUESSING, LEARNED, UNKNOWN, WORSE, Contrast, ModelVerdict, Questions, judge

TRUTHS = {
    "color": ("red", "blue", "green", "white"),
    "count": ("one", "two", "three"),
    "shape": ("round", "square", "oval"),
}
Answer = Callable[[Example, random.Random], str]


def shop(products: int, seed: int) -> list[Example]:
    """Two questions of each type about each product."""
    draw = random.Random(seed)
    return [
        Example(
            f"{seed}-{p}-{kind}-{n}", f"p{p}", f"i{p}", "", f"{kind} {n} of it", draw.choice(words), "", kind, "MUG"
        )
        for p in range(products)
        for kind, words in TRUTHS.items()
        for n in range(2)
    ]


def right_at(share: float) -> Answer:
    """A model that is right on a share of the questions."""
    return lambda e, draw: e.answer if draw.random() < share else "nonsense"


def others_truth(e: Example, draw: random.Random) -> str:
    """What a model that looks says about another product's image."""
    return draw.choice(TRUTHS[e.question_type])


def verdict_on(
    base: Answer,
    lora: Answer | list[str],
    swapped: Answer | None,
    products: int = 100,
    train: bool = True,
    sampled: int = 100,
) -> ModelVerdict:
    """Judge a planted base and fine-tuned model; without ``swapped`` the control is off, else of ``sampled`` products."""
    trained, rows = shop(200, seed=1), shop(products, seed=2)
    left_out = np.array([int(e.item_id[1:]) >= sampled for e in rows])
    draw = random.Random(3)

    def said(model: Answer | list[str]) -> list[str]:
        return model if isinstance(model, list) else [model(e, draw) for e in rows]

    def right(answers: list[str]) -> np.ndarray:
        return np.array([exact_match(e.answer, a) for e, a in zip(rows, answers, strict=True)])

    answers = {"base": said(base), "lora": said(lora)}
    scores = {name: right(given) for name, given in answers.items()}
    if train:
        scores["blind"] = right(blind_answers(trained, rows))
    return judge(
        "m",
        Questions(
            types=[e.question_type for e in rows],
            truths=[e.answer for e in rows],
            clusters=label_codes([e.item_id for e in rows]),
            answers=answers,
            right=scores,
            controls={} if swapped is None else {"swap": np.where(left_out, np.nan, right(said(swapped)))},
        ),
    )


def given(found: ModelVerdict) -> set[str]:
    """The verdicts on the question types, which agree in these tests, and on all questions."""
    return {one.verdict for one in [found.overall, *found.by_question_type.values()]}


def test_a_real_improvement_has_learned() -> None:
    found = verdict_on(right_at(0.3), right_at(0.85), others_truth)
    assert given(found) == {LEARNED}
    assert found.headline == "Fine-tuned m learned 3 of 3 question types (color, count, shape)."
    assert not found.overall.collapsed


def test_a_collapsed_model_that_gains_over_its_base_has_not_learned() -> None:
    found = verdict_on(
        right_at(0.05), lambda e, _: {"count": "three"}.get(e.question_type, "red"), lambda e, _: "three"
    )
    count = found.by_question_type["count"]
    assert count.over_base is not None and count.over_base.direction == 1
    assert (count.verdict, count.collapsed) == (GUESSING, True)
    assert count.answers["lora"].signs == ['200 of 200 answers are "three"']
    assert "gives collapsed answers on color, count and shape" in found.headline


def test_a_model_that_answers_as_the_blind_guesser_is_no_better_than_guessing() -> None:
    guesses = blind_answers(shop(200, seed=1), shop(100, seed=2))
    found = verdict_on(right_at(0.05), guesses, lambda e, _: "nonsense")
    assert given(found) == {GUESSING}
    assert "sees no image" in found.overall.why


def test_a_text_only_model_above_the_floor_is_no_better_than_guessing() -> None:
    known = [e.answer if n % 10 < 8 else "nonsense" for n, e in enumerate(shop(100, seed=2))]
    as_before = iter(known)
    found = verdict_on(right_at(0.3), known, lambda e, _: next(as_before))
    assert given(found) == {GUESSING}
    assert "another product's image" in found.overall.why
    assert found.overall.over_blind is not None and found.overall.over_blind.direction == 1


def test_a_better_base_means_it_got_worse() -> None:
    found = verdict_on(right_at(0.95), right_at(0.7), others_truth)
    assert given(found) == {WORSE}
    assert found.headline.endswith("it got worse on color, count and shape.")


@pytest.mark.parametrize("products", [5, 12])
def test_too_few_products_or_questions_cannot_be_told(products: int) -> None:
    assert given(verdict_on(right_at(0.4), right_at(0.55), others_truth, products)) == {UNKNOWN}


def test_few_products_prove_nothing_even_where_all_of_them_agree() -> None:
    guesses = blind_answers(shop(200, seed=1), shop(5, seed=2))
    found = verdict_on(right_at(0.0), guesses, lambda e, _: "nonsense", products=5)
    assert given(found) == {UNKNOWN} and found.overall.why == "only 5 products"


def test_a_control_of_too_few_questions_leaves_it_open() -> None:
    found = verdict_on(right_at(0.0), right_at(0.7), right_at(0.6), sampled=14)
    assert {one.verdict for one in found.by_question_type.values()} == {UNKNOWN}
    assert all("gain of 20 points by the image" in one.why for one in found.by_question_type.values())
    for one in found.by_question_type.values():
        control = one.control["swap"]
        assert (control.own.questions, control.other.questions, one.questions) == (28, 28, 200)
        assert control.own.mean - control.other.mean == pytest.approx(control.gain.difference.mean)
    assert {
        one.why for one in verdict_on(right_at(0.0), right_at(0.7), right_at(0.6), sampled=5).by_question_type.values()
    } == {"the control with other images is off or too small, so nobody knows whether the model looks"}


def test_questions_about_one_product_are_no_independent_evidence() -> None:
    # Seven of eight products went one way with all of their ten questions: 70 to 10 questions, yet p is 0.07.
    clusters = np.repeat(np.arange(12), 10)
    lora = np.where(clusters < 7, 1.0, 0.0)
    base = np.where(clusters == 7, 1.0, 0.0)
    words = [str(n % 7) for n in range(120)]
    found = judge("m", Questions(["color"] * 120, words, clusters, {"lora": words}, {"base": base, "lora": lora}, {}))
    over = found.overall.over_base
    assert over is not None and over.p == pytest.approx(18 / 256)
    assert over.direction == 0 and over.difference.mean == 0.5


@pytest.mark.parametrize(
    ("lora", "swapped", "train", "why"),
    [
        (right_at(0.85), None, True, "control"),
        (right_at(0.85), others_truth, False, "training"),
        (right_at(0.82), others_truth, True, "chance"),
    ],
)
def test_without_control_floor_or_difference_it_cannot_be_told(
    lora: Answer, swapped: Answer | None, train: bool, why: str
) -> None:
    base = right_at(0.82 if why == "chance" else 0.3)
    found = verdict_on(base, lora, swapped, train=train)
    assert given(found) == {UNKNOWN}
    assert why in found.overall.why


def planted(gains: dict[str, tuple[float, float]], products: int = 40) -> ModelVerdict:
    """A fine-tuned model that is always right; per type the base's and the floor's share, exactly, and no use without image.

    The share is that of the products, one question of each type about each.
    """
    n = np.arange(products)
    types = np.repeat(list(gains), products)
    base, blind = (
        np.concatenate([(n < pair[side] * products).astype(float) for pair in gains.values()]) for side in (0, 1)
    )
    words = [str(i % 7) for i in range(len(types))]
    return judge(
        "m",
        Questions(
            list(types),
            words,
            np.tile(n, len(gains)),
            {"base": words, "lora": words},
            {"base": base, "blind": blind, "lora": np.ones(len(types))},
            {"swap": np.zeros(len(types))},
        ),
    )


def test_the_reasons_state_their_figures_in_points() -> None:
    assert planted({"color": (0.5, 0.25)}).overall.why == (
        "+50.0 points over the base, +75.0 over the blind floor, +100.0 by the image"
    )
    worse = verdict_on(lambda e, _: e.answer, lambda e, draw: e.answer if e.id.endswith("0") else "no", others_truth)
    assert worse.overall.why == "50.0 points below the base"
    floor = verdict_on(lambda e, _: "no", lambda e, _: "no", others_truth).overall
    assert floor.blind is not None and floor.verdict == GUESSING
    assert floor.why == f"not above a guesser who sees no image ({-100 * floor.blind.mean:.1f} points)"
    same = planted({"color": (1.0, 0.25)}).overall
    assert (same.verdict, same.why) == (UNKNOWN, "the difference from the base may be chance (+0.0 points)")
    weak = verdict_on(right_at(0.0), right_at(0.7), right_at(0.6), sampled=14).by_question_type["color"]
    assert weak.why == "too few questions to notice a gain of 20 points by the image"
    few = verdict_on(right_at(0.4), right_at(0.55), others_truth, 12).by_question_type["color"]
    assert few.why == "too few questions to notice 20 points over the blind floor"


def test_half_of_the_questions_are_enough_for_all_to_have_learned() -> None:
    learned, knew = (0.0, 0.0), (1.0, 0.0)  # what the base knew before is no difference, so it cannot be told
    assert planted({"a": learned, "b": knew}).overall.verdict == LEARNED
    less = planted({"a": learned, "b": knew, "c": knew}).overall
    assert (less.verdict, less.why) == (
        UNKNOWN,
        "the mean rose, but 33 % of the questions are of types that it learned",
    )
    assert planted({"b": knew}).overall.verdict == UNKNOWN


def test_the_headline_counts_its_types_and_names_the_largest_first() -> None:
    assert planted({"b": (0.0, 0.0)}).headline == "Fine-tuned m learned 1 of 1 question type (b)."
    rows = shop(30, seed=2)
    rows = [e for e in rows if e.question_type != "color" or e.id.endswith("0")]
    words = [e.answer for e in rows]
    found = judge(
        "m",
        Questions(
            [e.question_type for e in rows], words, label_codes([e.item_id for e in rows]), {"lora": words},
            {"lora": np.ones(len(rows))}, {},
        ),
    )  # fmt: skip
    assert list(found.by_question_type) == ["count", "shape", "color"]
    assert (
        found.headline == "Fine-tuned m learned 0 of 3 question types; it cannot be judged on count, shape and color."
    )


def test_only_types_with_enough_products_share_a_correction() -> None:
    # Nine products are too few to test; were they in the family, the ten's p of 2/2^10 would be doubled.
    kinds = ["big"] * 10 + ["small"] * 9
    clusters = np.array([*range(10), *range(9)])
    scores = {"base": np.zeros(19), "lora": np.ones(19)}
    words = [str(i % 7) for i in range(19)]
    found = judge("m", Questions(kinds, words, clusters, {"base": words, "lora": words}, scores, {}))
    big, small = (found.by_question_type[kind].over_base for kind in ("big", "small"))
    assert big is not None and big.p_corrected == pytest.approx(2 / 2**10)
    assert small is not None and small.p_corrected is None and small.direction == 0


def test_one_type_that_learned_does_not_speak_for_the_others() -> None:
    def lora(e: Example, draw: random.Random) -> str:
        return right_at(0.9)(e, draw) if e.question_type == "color" else "three"

    found = verdict_on(right_at(0.0), lora, others_truth)
    assert [one.verdict for one in found.by_question_type.values()] == [LEARNED, GUESSING, GUESSING]
    assert found.headline.startswith("Fine-tuned m learned 1 of 3 question types (color)")


def test_a_mean_that_rises_by_guessing_on_top_of_what_the_base_knew_has_not_learned() -> None:
    def base(e: Example, draw: random.Random) -> str:
        return right_at(0.97)(e, draw) if e.question_type == "color" else "nonsense"

    def lora(e: Example, draw: random.Random) -> str:
        return base(e, draw) if e.question_type == "color" else TRUTHS[e.question_type][0]

    found = verdict_on(base, lora, lambda e, draw: "nonsense" if e.question_type == "color" else lora(e, draw))
    for contrast in (found.overall.over_base, found.overall.over_blind, found.overall.control["swap"].gain):
        assert contrast is not None and contrast.direction == 1, "all questions together pass every test"
    assert found.overall.verdict == GUESSING
    assert found.headline.startswith("Fine-tuned m learned 0 of 3 question types; it is no better than guessing on")


def test_flipping_signs_is_mcnemars_exact_test_for_one_question_a_product() -> None:
    draw = np.random.default_rng(0)
    before, after = draw.random(300) < 0.4, draw.random(300) < 0.5
    p = sign_flip(after.astype(float) - before, np.arange(300))
    assert p == pytest.approx(mcnemar(before, after).p, rel=1e-9)


def test_flipping_signs_counts_products_and_not_their_questions() -> None:
    # Six products whose five questions all went the same way: of 2^6 sign flips two are as extreme.
    assert sign_flip(np.ones(30), np.repeat(np.arange(6), 5)) == pytest.approx(2 / 64)
    assert sign_flip(np.zeros(30), np.repeat(np.arange(6), 5)) == 1.0
    # By hand: sums 2, 1, -1; of the eight totals of ±2 ±1 ±1 six are at least 2 away from 0.
    assert sign_flip(np.array([1.0, 1.0, 1.0, -1.0]), np.array([0, 0, 1, 2])) == pytest.approx(6 / 8)


@pytest.mark.parametrize(("mean", "detectable", "weak"), [(0.3, 0.9, False), (0.0, 0.9, True), (0.0, 0.01, False)])
def test_a_comparison_is_too_weak_only_where_it_found_nothing(mean: float, detectable: float, weak: bool) -> None:
    found = Contrast(Interval(mean, mean, mean, 100, 50), 0.001, 0.001 if mean else 1.0, detectable)
    assert found.too_weak == weak


def test_holm_corrects_in_order_and_never_above_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_many_types_without_effect_are_rarely_called_a_change() -> None:
    # Twelve types, no effect: without the correction a quarter of all reports would name a type that got worse.
    draw, named = np.random.default_rng(7), 0
    for _ in range(30):
        n = 12 * 100
        types = np.repeat([f"t{i}" for i in range(12)], 100)
        scores = {name: (draw.random(n) < 0.5).astype(float) for name in ("base", "lora", "blind")}
        words = [str(i % 7) for i in range(n)]
        columns = Questions(list(types), words, np.arange(n), {"base": words, "lora": words}, scores, {})
        named += any(one.verdict == WORSE for one in judge("m", columns).by_question_type.values())
    assert named <= 3
