"""Intervals cover, clusters count, paired tests agree with the textbook."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from vqa.evaluation import statistics
from vqa.evaluation.statistics import (
    Interval,
    calibration,
    detectable_difference,
    format_interval,
    interval,
    label_codes,
    mcnemar,
    paired,
    sign_flip,
)


def clustered(random: np.random.Generator, products: int) -> tuple[np.ndarray, np.ndarray]:
    """Five questions a product whose difficulty they share; the true mean is one half."""
    difficulty = random.beta(1, 1, products)
    values = (random.random((products, 5)) < difficulty[:, None]).astype(float).ravel()
    return values, np.repeat(np.arange(products), 5)


def test_intervals_hold_the_true_mean_about_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        values, products = clustered(random, 150)
        found = interval(values, products, resamples=400)
        held += found.low <= 0.5 <= found.high
    assert 181 <= held <= 198


def test_questions_of_one_product_do_not_count_as_independent() -> None:
    values, products = clustered(np.random.default_rng(1), 300)
    by_product, by_question = interval(values, products), interval(values, np.arange(len(values)))
    assert by_product.high - by_product.low > 1.3 * (by_question.high - by_question.low)
    assert by_product.mean == by_question.mean == pytest.approx(values.mean())


def test_repeating_every_question_does_not_narrow_the_interval() -> None:
    values, products = clustered(np.random.default_rng(2), 200)
    once, thrice = interval(values, products), interval(np.tile(values, 3), np.tile(products, 3))
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))


def test_the_fast_bootstrap_agrees_with_drawing_products_one_by_one() -> None:
    random = np.random.default_rng(3)
    products = np.repeat(np.arange(60), random.integers(1, 6, 60))
    values = random.random(len(products))
    sums, counts = np.bincount(products, weights=values), np.bincount(products)
    drawn = random.integers(0, 60, (20_000, 60))
    plain = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    found = interval(values, products, resamples=20_000)
    assert (found.low, found.high) == pytest.approx(tuple(plain), abs=0.004)


def test_an_interval_is_the_same_every_time_and_empty_input_gives_none() -> None:
    values, products = clustered(np.random.default_rng(4), 50)
    assert interval(values, products) == interval(values, products)
    assert interval(np.array([]), np.array([], dtype=int)).questions == 0


def test_mcnemar_is_the_binomial_test_of_the_questions_that_differ() -> None:
    before, after = np.array([False] * 8 + [True] * 52), np.array([True] * 8 + [False] * 2 + [True] * 50)
    found = mcnemar(before, after)
    assert (found.fixed, found.broken) == (8, 2)
    assert found.p == pytest.approx(0.109375)
    assert mcnemar(after, after).p == 1.0
    assert mcnemar(np.array([True] * 5), np.array([False] * 5)).p == pytest.approx(2 / 2**5)


def test_a_paired_difference_is_surer_than_two_separate_means() -> None:
    before, products = clustered(np.random.default_rng(5), 200)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:40]] = 1.0
    found = paired(before, after, products)
    assert found.difference.high - found.difference.low < (found.before.high - found.before.low) / 2
    assert found.difference.mean == pytest.approx(40 / len(before))
    assert found.difference.low > 0


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(6)
    differences = random.normal(0.0, 1.0, 400)
    limit = detectable_difference(differences, np.arange(400))
    error = 1.0 / np.sqrt(400)
    assert limit == pytest.approx(2.80 * error, rel=0.1)
    shown = (random.normal(limit, error, 20_000) > 1.96 * error).mean()
    assert 0.7 < shown < 0.9


def test_calibration_error_is_zero_for_a_calibrated_model_and_one_for_a_boaster() -> None:
    random = np.random.default_rng(7)
    sure = random.random(50_000)
    right = (random.random(50_000) < sure).astype(float)
    assert calibration(sure, right).ece < 0.015
    assert calibration(np.ones(100), np.zeros(100)).ece == 1.0
    assert sum(b.questions for b in calibration(sure, right).bins) == 50_000


def test_calibration_bins_by_hand() -> None:
    found = calibration(np.array([0.05, 0.15, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 0.0]))
    assert [(b.low, b.high, b.questions) for b in found.bins] == [(0.0, 0.1, 1), (0.1, 0.2, 1), (0.9, 1.0, 2)]
    assert [b.confidence for b in found.bins] == pytest.approx([0.05, 0.15, 0.975])
    assert [b.accuracy for b in found.bins] == [0.0, 1.0, 0.5]
    assert found.ece == pytest.approx((0.05 + 0.85 + 0.95) / 4)
    assert (found.questions, calibration(np.array([]), np.array([])).ece) == (4, 0.0)


def test_the_detectable_difference_by_hand() -> None:
    # Clusters of 2, 1 and 1 questions, mean 1/2: residuals 1, -1/2, -1/2; error sqrt(3/2 * 3/2) / 4.
    found = detectable_difference(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 2]))
    assert found == pytest.approx((1.959964 + 0.841621) * 1.5 / 4)
    assert detectable_difference(np.array([1.0, 0.0]), np.array([0, 0])) is None
    # Two clusters are enough: residuals 1/2 and -1/2, error sqrt(2 * 1/2) / 2.
    assert detectable_difference(np.array([1.0, 0.0]), np.array([0, 1])) == pytest.approx(2.801585 / 2)


def test_the_bootstrap_in_pieces_draws_as_many_samples_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, counts = np.array([0.0, 1.0, 2.0]), np.array([2, 2, 2])
    monkeypatch.setattr(statistics, "_CHUNK", 30)  # ten samples of three kinds at once
    means = statistics._resampled_means(sums, counts, 95, seed=0)
    assert means.shape == (95,) and means.mean() == pytest.approx(0.5, abs=0.1)
    monkeypatch.setattr(statistics, "_CHUNK", 1)
    assert statistics._resampled_means(sums, counts, 7, seed=0).shape == (7,)


def test_one_product_has_no_interval_and_few_are_said_to_be_too_few() -> None:
    one = interval(np.array([1.0, 0.0]), np.array([4, 4]))
    assert (one.mean, one.low, one.high, one.questions, one.clusters) == (0.5, None, None, 2, 1)
    assert format_interval(one) == "no interval: one cluster"
    assert interval(np.array([1.0, 0.0]), np.array([4, 7])).low == 0.0  # two are enough
    assert interval(np.array([]), np.array([], dtype=int)).clusters == 0
    assert format_interval(Interval(0.5, 0.25, 0.75, 90, 9)) == "95 % [0.2500, 0.7500], too narrow: only 9 clusters"
    assert format_interval(Interval(0.5, 0.25, 0.75, 90, 10), ".1f") == "95 % [0.2, 0.8]"


def test_paired_scores_of_one_and_zero_are_what_mcnemar_counts() -> None:
    before, after = np.array([0.0, 1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    found = paired(before, after, np.arange(5))
    assert (found.mcnemar.fixed, found.mcnemar.broken, found.mcnemar.p) == (2, 1, 1.0)
    assert (found.before.mean, found.after.mean) == pytest.approx((0.4, 0.6))
    assert found.detectable == detectable_difference(after - before, np.arange(5))


def test_flipping_many_large_products_stays_a_probability() -> None:
    # Long convolutions go by FFT, whose tiny negative numbers must not add up.
    draw = np.random.default_rng(11)
    clusters = np.repeat(np.arange(1500), 5)
    differences = draw.choice([-1.0, 0.0, 1.0], size=len(clusters))
    sums = np.bincount(clusters, weights=differences)
    z = abs(sums.sum()) / np.sqrt((sums**2).sum())
    assert sign_flip(differences, clusters) == pytest.approx(float(2 * norm.sf(z)), abs=0.02)
    assert 0.0 <= sign_flip(np.ones(len(clusters)), clusters) < 1e-12


def test_label_codes_number_labels_by_first_appearance() -> None:
    assert label_codes(["b", "a", "b"]).tolist() == [0, 1, 0]
