"""What a judged sample says about the whole test split: shares, a model's accuracy against people, agreement between people.

All are weighted by stratum and clustered by product: a sample that has more contested questions than the split does not bias
them, and two questions about one image do not count as two independent ones. Variances are linearized (Cochran 1977, 5.3 and 6.3;
Binder 1983, "On the variances of asymptotically normal estimators from complex surveys").
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from vqa.evaluation.statistics import Interval

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Judged:
    """The questions of the test split, and which of them were judged."""

    strata: np.ndarray  # stratum of every question, integers from 0 (N,)
    clusters: np.ndarray  # product of every question, integers from 0 (N,)
    sampled: np.ndarray  # numbers of the judged questions (n,)

    def pooled(self) -> Judged:
        """The same with strata of fewer than two judged questions made one, or part of the largest: each needs a variance."""
        counts = np.bincount(self.strata[self.sampled], minlength=int(self.strata.max()) + 1)
        thin = counts < 2
        if not thin.any() or len(self.sampled) < 2:
            return self
        strata = self.strata.copy()
        target = int(np.flatnonzero(thin)[0]) if counts[thin].sum() >= 2 else int(counts.argmax())
        strata[thin[strata]] = target
        return Judged(np.unique(strata, return_inverse=True)[1], self.clusters, self.sampled)

    def weights(self) -> np.ndarray:
        """How many questions of the split each judged one stands for (n,)."""
        every = np.bincount(self.strata)
        judged = np.bincount(self.strata[self.sampled], minlength=len(every))
        return (every / np.maximum(judged, 1))[self.strata[self.sampled]]


def prediction_powered(judged: Judged, machine: np.ndarray, people: np.ndarray) -> Interval:
    """A mean over the split by prediction-powered inference, with its 95 % interval.

    The mean of the machine's scores over all questions, plus the mean over the judged ones of what people's scores differ from it.
    The first part is precise and biased, the second takes out the bias. Source: Angelopoulos, Bates, Fannjiang, Jordan, Zrnic 2023,
    "Prediction-powered inference" (Science 382); stratified: Fisch, Maynez, Hofer, Dhingra, Globerson, Cohen 2024, "Stratified
    prediction-powered inference". Here the judged questions are some of all questions, so their covariance is part of the variance.

    Args:
        machine: score of every question by the generated answers, 0 or 1 (N,).
        people: score of the judged questions by people, 0 to 1 (n,).
    """
    judged = judged.pooled()
    if len(judged.sampled) < 2:
        return Interval(math.nan, None, None, len(judged.sampled), len(judged.sampled))
    total, strata, weights = len(machine), judged.strata[judged.sampled], judged.weights()
    off = people - machine[judged.sampled]
    count = np.bincount(strata, minlength=int(judged.strata.max()) + 1)
    off_mean = np.bincount(strata, weights=off, minlength=len(count)) / np.maximum(count, 1)
    expected = machine + off_mean[judged.strata]  # of every question, by its stratum
    mean = float(expected.mean())
    influence = (expected - mean) / total
    n = count[strata]
    influence[judged.sampled] += weights * (off - off_mean[strata]) * np.sqrt(n / (n - 1)) / total
    error = _clustered_error(influence, judged.clusters)
    if error is None:
        return Interval(mean, None, None, len(judged.sampled), 1)
    products = len(np.unique(judged.clusters[judged.sampled]))
    half = _t(products - len(np.unique(strata))) * error
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), len(judged.sampled), products)


def weighted_share(judged: Judged, values: np.ndarray, domain: np.ndarray | None = None) -> Interval:
    """The share of questions with a property, estimated from the judged ones alone, with its 95 % interval.

    The interval is Clopper and Pearson's with the sample's effective size: exact for rare errors, where a normal one would reach
    below zero or, with no error found, be a point. Source: Korn and Graubard 1998, "Confidence intervals for proportions with small
    expected number of positive counts estimated from survey data".

    Args:
        values: 0 to 1 of the judged questions (n,).
        domain: which of the judged questions count (n,), booleans; None: all.
    """
    judged = judged.pooled()
    weights = judged.weights() * (1.0 if domain is None else domain)
    inside = weights > 0
    n = int(inside.sum())
    if not n:
        return Interval(math.nan, None, None, 0, 0)
    clusters = judged.clusters[judged.sampled]
    products = len(np.unique(clusters[inside]))
    mean = float(weights @ values / weights.sum())
    strata = judged.strata[judged.sampled]
    influence = weights * (values - mean) / weights.sum()
    centered = influence - (np.bincount(strata, weights=influence) / np.maximum(np.bincount(strata), 1))[strata]
    error = _clustered_error(centered, clusters)
    effective = float(weights.sum() ** 2 / (weights @ weights))  # Kish's, where no error tells the variance
    if error and 0 < mean < 1:
        df = max(1, products - len(np.unique(strata[inside])))
        effective = min(float(n), mean * (1 - mean) / error**2 * (_t(n - 1) / _t(df)) ** 2)
    low, high = _clopper_pearson(mean * effective, effective)
    return Interval(mean, low, high, n, products)


def kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two people's verdicts on the same questions, in order: 1 in full agreement, 0 as by chance.

    None where nothing was judged by both, or both gave one verdict only: chance alone then explains everything. Source: Cohen 1960,
    "A coefficient of agreement for nominal scales".
    """
    n = len(one)
    kinds = set(one) | set(other)
    chance = sum(one.count(kind) * other.count(kind) for kind in kinds) / n**2 if n else 1.0
    if chance >= 1.0:
        return None
    same = sum(a == b for a, b in zip(one, other, strict=True)) / n
    return (same - chance) / (1 - chance)


def _clustered_error(influence: np.ndarray, clusters: np.ndarray) -> float | None:
    """Standard error from each question's influence, summed by product; None with one product."""
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=influence)
    k = len(sums)
    return math.sqrt(k / (k - 1) * float(sums @ sums)) if k > 1 else None


def _t(df: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, max(1, df)))


def _clopper_pearson(right: float, n: float) -> tuple[float, float]:
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, right, n - right + 1)) if right > 1e-9 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, n - right)) if n - right > 1e-9 else 1.0
    return low, high
