"""The metrics of the report, each defined where it is computed.

>>> score([("red", "Red."), ("two", "3")]).metrics["exact_match"].mean
0.5

Metrics are computed per answer (`per_answer`), so that intervals and breakdowns sum the same numbers as the headline.
Nothing here averages averages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from data_prep.normalize import normalize
from vqa.evaluation.bertscore import BertScoreUnavailable, BertSettings, BertUsed, bert_scores
from vqa.evaluation.statistics import Interval, interval

Pair = tuple[str, str]  # (truth, answer)


@dataclass(frozen=True, slots=True)
class Definition:
    """How the report names and explains a metric."""

    label: str
    text: str


DEFINITIONS = {
    "exact_match": Definition("Exact match (VQA-normalized)", "Share of answers equal to the truth after the VQA "
        "challenge's normalization: lower case, no punctuation, no articles, number words as digits."),
    "strict_exact_match": Definition("Exact match (strict)", "Share of answers equal to the truth character by character. "
        "Published exact match of these models is defined this way."),
    "token_f1": Definition("Token F1", "Mean over answers of the F1 between the words of answer and truth (after "
        "normalization, as in SQuAD). For one-word answers it equals exact match."),
    "macro_f1": Definition("Macro F1 over answers", "Each normalized answer is a class; the F1 of every class that occurs "
        "as truth or answer, averaged with equal weight (scikit-learn, f1_score average='macro'). Rare answers count as "
        "much as frequent ones."),
    "weighted_f1": Definition("Weighted F1 over answers", "The same, each class weighted by how often it is the truth "
        "(scikit-learn, average='weighted')."),
    "substring_match": Definition("Substring match", "Share of answers that contain the truth or are contained in it, "
        "character by character. An empty answer counts as contained, as in the published figures."),
    "substring_match_nonempty": Definition("Substring match, empty = wrong", "Substring match where an empty answer is "
        "wrong."),
    "levenshtein": Definition("Levenshtein similarity", "Mean of 1 − edit distance ÷ length of the longer string (lower "
        "case, surrounding whitespace removed)."),
    "bertscore_f1": Definition("BERTScore F1", "Mean BERTScore F1 (Zhang et al. 2020). An empty answer scores 0. Without "
        "baseline rescaling, good and bad answers score nearly the same: rely on exact match."),
}  # fmt: skip


def exact_match(truth: str, answer: str) -> float:
    """1.0 where both are equal after `normalize`; an empty answer is wrong, and so is one that is nothing but punctuation."""
    given = normalize(answer)
    return float(bool(given) and normalize(truth) == given)


def strict_exact_match(truth: str, answer: str) -> float:
    """1.0 where both strings are the same."""
    return float(bool(answer) and truth == answer)


def token_f1(truth: str, answer: str) -> float:
    """F1 of the bags of normalized words (Rajpurkar et al. 2016, SQuAD)."""
    gold, given = normalize(truth).split(), normalize(answer).split()
    shared = sum((Counter(gold) & Counter(given)).values())
    return 2 * shared / (len(gold) + len(given)) if shared else 0.0


def substring_match(truth: str, answer: str) -> float:
    """1.0 where one contains the other. The empty string is in every string: that is how published figures count it."""
    return float(answer in truth or truth in answer)


def substring_match_nonempty(truth: str, answer: str) -> float:
    """`substring_match` where an empty answer is wrong."""
    return substring_match(truth, answer) if answer.strip() else 0.0


def levenshtein(truth: str, answer: str) -> float:
    """1 − edit distance ÷ the longer length, of the lower-case strings; two empty strings are equal."""
    a, b = truth.lower().strip(), answer.lower().strip()
    longest = max(len(a), len(b))
    return 1.0 - Levenshtein.distance(a, b) / longest if longest else 1.0


SIMPLE: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "strict_exact_match": strict_exact_match,
    "token_f1": token_f1,
    "substring_match": substring_match,
    "substring_match_nonempty": substring_match_nonempty,
    "levenshtein": levenshtein,
}


@dataclass(frozen=True, slots=True)
class PerAnswer:
    """The metrics that are a mean over answers, answer by answer."""

    values: dict[str, np.ndarray]  # metric → float64 (N,)
    gaps: dict[str, str]  # metric → why it could not be computed
    bertscore: BertUsed | None


@dataclass(frozen=True, slots=True)
class Scores:
    """All metrics over all answers."""

    questions: int
    empty_answers: int
    metrics: dict[str, Interval | float]  # by name; the F1 scores over classes are no means and have no interval
    gaps: dict[str, str]  # metric → why it could not be computed
    bertscore: BertUsed | None


def per_answer(pairs: Sequence[Pair], bert: BertSettings | None = None) -> PerAnswer:
    """All metrics that are a mean over answers.

    Args:
        pairs: (truth, answer).
        bert: None leaves BERTScore out.
    """
    # One-word answers repeat: each different pair is scored once, which is a third of BERTScore's work or less.
    unique = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
    where = np.fromiter((unique[pair] for pair in pairs), dtype=np.int64, count=len(pairs))
    values = {
        name: np.array([metric(*pair) for pair in unique], dtype=np.float64)[where] for name, metric in SIMPLE.items()
    }
    if bert is None:
        return PerAnswer(values, {"bertscore_f1": "no BERTScore model is configured"}, None)
    try:
        scores, used = bert_scores(list(unique), bert)
    except BertScoreUnavailable as error:
        return PerAnswer(values, {"bertscore_f1": str(error)}, None)
    return PerAnswer(values | {"bertscore_f1": scores[where]}, {}, used)


def class_f1(pairs: Sequence[Pair]) -> dict[str, float]:
    """Macro and weighted F1 with each normalized answer as a class."""
    if not pairs:
        return {"macro_f1": 0.0, "weighted_f1": 0.0}
    from sklearn.metrics import f1_score  # a second to import

    codes: dict[str, int] = {}
    truths, answers = (
        np.array([codes.setdefault(normalize(pair[side]), len(codes)) for pair in pairs]) for side in (0, 1)
    )
    per_class = f1_score(truths, answers, average=None, labels=np.arange(len(codes)), zero_division=0.0)
    weights = np.bincount(truths, minlength=len(codes))
    return {"macro_f1": float(per_class.mean()), "weighted_f1": float(per_class @ weights / weights.sum())}


def score(pairs: Sequence[Pair], clusters: np.ndarray | None = None, bert: BertSettings | None = None) -> Scores:
    """All metrics over all answers, with intervals.

    Args:
        pairs: (truth, answer).
        clusters: the product of each answer, for the intervals; None takes the answers as independent.
        bert: None leaves BERTScore out.
    """
    answers = per_answer(pairs, bert)
    groups = np.arange(len(pairs)) if clusters is None else clusters
    return Scores(
        questions=len(pairs),
        empty_answers=sum(not answer.strip() for _, answer in pairs),
        metrics={name: interval(values, groups) for name, values in answers.values.items()} | class_f1(pairs),
        gaps=answers.gaps,
        bertscore=answers.bertscore,
    )
