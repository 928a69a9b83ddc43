"""How good answers are: every metric of the report, with its definition where it is computed.

>>> score([("red", "Red."), ("two", "3")], MetricSettings(bertscore_model=None))["exact_match"]
0.5

Metrics are computed an answer at a time (`per_answer`), so that intervals and breakdowns sum the same numbers that the
headline sums. Nothing here averages averages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rapidfuzz.distance import Levenshtein

from vqa.normalize import normalize

Pair = tuple[str, str]  # (truth, answer)

DEFINITIONS = {
    "exact_match": "Share of answers equal to the truth after the VQA challenge's normalization: lower case, no "
    "punctuation, no articles, number words as digits.",
    "strict_exact_match": "Share of answers equal to the truth character by character. This is the definition behind the "
    "exact match that others publish for these models.",
    "token_f1": "Mean over answers of the F1 between the words of answer and truth (after normalization, as SQuAD). For "
    "one-word answers it equals exact match.",
    "macro_f1": "F1 per truth answer seen as a class, averaged with equal weight to every class that is a truth or an "
    "answer (scikit-learn, f1_score average='macro', normalized strings). Rare answers count as much as frequent ones.",
    "weighted_f1": "The same, each class weighted by how often it is the truth (scikit-learn, average='weighted').",
    "substring_match": "Share of answers that contain the truth or are contained in it, character by character. As in the "
    "published figures an empty answer counts as contained; see substring_match_nonempty.",
    "substring_match_nonempty": "Substring match where an empty answer is wrong.",
    "levenshtein": "Mean of 1 − edit distance ÷ length of the longer string (lower case, surrounding blanks removed).",
    "bertscore_f1": "Mean BERTScore F1 (Zhang et al. 2020). An empty answer scores 0 and is not given to the model. "
    "Without baseline rescaling it hardly moves between good and bad answers: lead with exact match.",
}
NAMES = {
    "exact_match": "Exact match (VQA-normalized)",
    "strict_exact_match": "Exact match (strict)",
    "token_f1": "Token F1",
    "macro_f1": "Macro F1 over answers",
    "weighted_f1": "Weighted F1 over answers",
    "substring_match": "Substring match",
    "substring_match_nonempty": "Substring match, empty = wrong",
    "levenshtein": "Levenshtein similarity",
    "bertscore_f1": "BERTScore F1",
}
MEANS = (  # metrics that are a mean over answers, so that a bootstrap can sum them
    "exact_match",
    "strict_exact_match",
    "token_f1",
    "substring_match",
    "substring_match_nonempty",
    "levenshtein",
    "bertscore_f1",
)


class MetricSettings(BaseModel):
    """Which BERT BERTScore uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bertscore_model: str | None = "microsoft/deberta-xlarge-mnli"
    """Hub name or folder; ``package:NAME`` for the folder ``model`` in an installed Python package; null for none."""

    bertscore_layer: int | None = Field(default=None, ge=1)
    """Which layer's vectors are compared; null takes the one that bert-score recommends for a known model."""

    bertscore_batch: int = Field(default=256, ge=1)
    """Pairs a forward pass."""


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
    """Every metric of every answer, and why one is missing."""

    values: dict[str, np.ndarray]  # metric → float64, one entry an answer
    gaps: dict[str, str]  # metric → why there is none
    bertscore: dict[str, Any]  # model, layer and rescaling that were used


def per_answer(pairs: Sequence[Pair], settings: MetricSettings | None = None) -> PerAnswer:
    """All metrics that are a mean over answers.

    Args:
        pairs: (truth, answer).
        settings: which BERT; None leaves BERTScore out.
    """
    unique = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
    where = np.fromiter((unique[pair] for pair in pairs), dtype=np.int64, count=len(pairs))
    values = {
        name: np.array([metric(*pair) for pair in unique], dtype=np.float64)[where] for name, metric in SIMPLE.items()
    }
    gaps: dict[str, str] = {}
    used: dict[str, Any] = {}
    if settings is None or settings.bertscore_model is None:
        gaps["bertscore_f1"] = "not configured (no BERTScore model is named)"
    else:
        from vqa.evaluation.bertscore import BertScoreUnavailable, bert_scores  # torch is only needed here

        try:
            scores, used = bert_scores(list(unique), settings)
            values["bertscore_f1"] = scores[where]
        except BertScoreUnavailable as error:
            gaps["bertscore_f1"] = str(error)
    return PerAnswer(values, gaps, used)


def class_f1(pairs: Sequence[Pair]) -> dict[str, float]:
    """Macro and weighted F1 over answers as classes, by scikit-learn, on normalized strings."""
    if not pairs:
        return {"macro_f1": 0.0, "weighted_f1": 0.0}
    from sklearn.metrics import f1_score

    codes: dict[str, int] = {}
    truths, answers = (
        np.array([codes.setdefault(normalize(pair[side]), len(codes)) for pair in pairs]) for side in (0, 1)
    )
    per_class = f1_score(truths, answers, average=None, labels=np.arange(len(codes)), zero_division=0.0)
    weights = np.bincount(truths, minlength=len(codes))
    return {"macro_f1": float(per_class.mean()), "weighted_f1": float(per_class @ weights / weights.sum())}


def score(pairs: Sequence[Pair], settings: MetricSettings | None = None) -> dict[str, Any]:
    """All metrics over all answers.

    Returns:
        metric → mean in 0..1 (None where it could not be computed), ``questions``, ``empty_answers``, ``gaps``
        (metric → reason) and ``bertscore`` (model, layer, rescaled).
    """
    answers = per_answer(pairs, settings)
    means = {name: float(v.mean()) if len(v) else None for name, v in answers.values.items()}
    return {
        "questions": len(pairs),
        "empty_answers": sum(not answer.strip() for _, answer in pairs),
        **{name: means.get(name) for name in MEANS},
        **class_f1(pairs),
        "gaps": answers.gaps,
        "bertscore": answers.bertscore,
    }
