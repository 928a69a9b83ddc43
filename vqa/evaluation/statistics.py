"""Uncertainty: intervals, paired tests, the smallest detectable difference, calibration.

Questions about one product are not independent: they share an image, and often an answer. Resampling questions would
give intervals that are too narrow, so everything here resamples products.

>>> interval(np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1])).mean
0.75
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
# With few clusters the percentile bootstrap is too narrow. A nominal 95 % interval covers the truth in 50 % of cases with
# 2 clusters, 71 % with 3, 83 % with 5, 92 % with 10 and 94.5 % with 30 (simulated: 0/1 scores, five to a cluster).
FEW = 10
_CHUNK = 4_000_000  # multinomial counts held in memory at once: 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions with its 95 % interval. Below `FEW` clusters the interval is too narrow."""

    mean: float
    low: float | None  # None with fewer than two clusters: one product says nothing about others
    high: float | None
    questions: int
    clusters: int  # products, or whatever the questions are grouped by


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact McNemar test on the questions that exactly one of two models answers correctly."""

    fixed: int  # wrong before, right after
    broken: int  # right before, wrong after
    p: float  # two-sided


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same questions."""

    before: Interval
    after: Interval
    difference: Interval  # after minus before
    mcnemar: McNemar
    detectable: float | None  # see `detectable_difference`


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The answers whose confidence lies in [low, high)."""

    low: float
    high: float  # the last bin includes 1.0
    questions: int
    confidence: float  # mean of the bin
    accuracy: float  # mean of the bin


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well confidence predicts correctness."""

    ece: float  # expected calibration error
    questions: int
    bins: list[CalibrationBin]  # without empty bins


def label_codes(labels: Sequence[Hashable]) -> np.ndarray:
    """Integer codes 0, 1, ... for labels, in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.fromiter((seen.setdefault(x, len(seen)) for x in labels), dtype=np.int64, count=len(labels))


def interval(values: np.ndarray, clusters: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of values with its 95 % percentile interval by the cluster bootstrap.

    Clusters are drawn with replacement. A resample's mean is its total score over its number of questions, so a product
    with five questions weighs five times as much as a product with one. Source: Davison and Hinkley 1997, "Bootstrap
    Methods and their Application", 3.8; Field and Welsh 2007, "Bootstrapping clustered data".

    Args:
        values: one score, or one difference of scores, per answer (N,).
        clusters: the cluster of each answer (N,), integers from 0.
    """
    if not len(values):
        return Interval(math.nan, None, None, 0, 0)
    _, dense = np.unique(clusters, return_inverse=True)
    counts = np.bincount(dense)
    sums = np.bincount(dense, weights=values)
    if len(counts) < 2:
        return Interval(float(values.mean()), None, None, len(values), len(counts))
    draws = _resampled_means(sums, counts, resamples, seed)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(values), len(counts))


def format_interval(interval: Interval, form: str = ".4f") -> str:
    """The limits of an interval as text, with a warning where there are too few clusters."""
    if interval.low is None:
        return "no interval: one cluster"
    few = f", too narrow: only {interval.clusters} clusters" if interval.clusters < FEW else ""
    return f"95 % [{interval.low:{form}}, {interval.high:{form}}]{few}"


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    # A resample's mean depends only on how many clusters of each (sum, count) it holds. Right-or-wrong scores give few
    # such kinds, so a multinomial over kinds is exact, and its cost does not grow with the number of products.
    kinds, sizes = np.unique(np.stack([np.round(sums, 9), counts], axis=1), axis=0, return_counts=True)
    total = int(sizes.sum())
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(kinds))
    means = []
    for start in range(0, resamples, chunk):
        times = random.multinomial(total, sizes / total, size=min(chunk, resamples - start))
        means.append((times @ kinds[:, 0]) / (times @ kinds[:, 1]))
    return np.concatenate(means)


def mcnemar(before: np.ndarray, after: np.ndarray) -> McNemar:
    """Exact McNemar test on right or wrong answers to the same questions.

    Source: McNemar 1947; the exact form is a binomial test of the discordant pairs against one half. It treats questions
    as independent; the paired cluster bootstrap does not.

    Args:
        before, after: whether each answer is right, as booleans (N,).
    """
    from scipy.stats import binomtest  # half a second to import

    fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
    p = float(binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0
    return McNemar(fixed, broken, p)


def sign_flip(differences: np.ndarray, clusters: np.ndarray) -> float:
    """Two-sided p of a paired difference of right answers, exact, with products as the units.

    Under the null hypothesis each product's summed difference is as likely to be of the other sign, so the observed total is
    compared with its distribution over all sign flips. With one question a product this is the exact McNemar test. Source:
    Fisher 1935, "The Design of Experiments", 21; Pitman 1937, "Significance tests which may be applied to samples from any
    populations"; flipping whole clusters: Gail, Mark, Carroll, Green, Pee 1996, "On design considerations and
    randomization-based inference for community intervention trials".

    Args:
        differences: after minus before, of scores 0 or 1 (N,).
        clusters: the product of each difference (N,).
    """
    from scipy.signal import convolve
    from scipy.stats import binom

    _, dense = np.unique(clusters, return_inverse=True)
    sums = np.rint(np.bincount(dense, weights=differences)).astype(np.int64)
    sizes, times = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    # With the size m of a sum and B of its n clusters turned positive, the total is the sum over sizes of m (2 B - n). The
    # distribution of the sum of m B is a convolution of stretched binomials.
    chances = np.ones(1)
    for size, count in zip(sizes, times, strict=True):
        stretched = np.zeros(size * count + 1)
        stretched[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.maximum(convolve(chances, stretched), 0.0)  # by FFT where long, which leaves tiny negative numbers
    extreme = (abs(int(sums.sum())) + int((sizes * times).sum())) // 2
    return float(min(1.0, 2 * chances[extreme:].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for testing several hypotheses at once, in the same order.

    The chance of even one false claim stays below the level, whatever the dependence. Source: Holm 1979, "A simple
    sequentially rejective multiple test procedure".
    """
    corrected = list(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def paired(before: np.ndarray, after: np.ndarray, clusters: np.ndarray) -> Paired:
    """Compare two models' scores, 0 or 1, on the same questions.

    The interval of the difference is a paired cluster bootstrap: a drawn product brings both models' answers along.
    """
    return Paired(
        before=interval(before, clusters),
        after=interval(after, clusters),
        difference=interval(after - before, clusters),
        mcnemar=mcnemar(before > 0.5, after > 0.5),
        detectable=detectable_difference(after - before, clusters),
    )


def detectable_difference(differences: np.ndarray, clusters: np.ndarray, *, power: float = 0.8) -> float | None:
    """The smallest true difference that a two-sided test at 5 % would detect with the given power; None below two clusters.

    (z(0.975) + z(power)) times the cluster-robust standard error of the paired difference. Source: Cohen 1988,
    "Statistical Power Analysis", with the linearized variance of a ratio of cluster sums (Cochran 1977, 6.3).
    """
    from scipy.stats import norm

    _, dense = np.unique(clusters, return_inverse=True)
    counts = np.bincount(dense)
    k = len(counts)
    if k < 2:
        return None
    residuals = np.bincount(dense, weights=differences) - differences.mean() * counts
    error = math.sqrt(k / (k - 1) * float(residuals @ residuals)) / counts.sum()
    return float((norm.ppf(0.975) + norm.ppf(power)) * error)


def calibration(confidence: np.ndarray, right: np.ndarray, *, bins: int = 10) -> Calibration:
    """Expected calibration error and the bins of a reliability diagram.

    The ECE is the mean over answers of |accuracy − mean confidence| of the answer's bin; bins have equal width. Source: Guo,
    Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks".

    Args:
        confidence: in 0..1 (N,).
        right: 0 or 1 (N,).
    """
    where = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(where, minlength=bins)
    sure = np.bincount(where, weights=confidence, minlength=bins)
    hits = np.bincount(where, weights=right, minlength=bins)
    found = [
        CalibrationBin(i / bins, (i + 1) / bins, int(n), float(s / n), float(h / n))
        for i, (n, s, h) in enumerate(zip(count, sure, hits, strict=True))
        if n
    ]
    return Calibration(float(np.abs(hits - sure).sum() / max(1, len(right))), len(right), found)
