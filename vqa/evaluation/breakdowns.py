"""Where a model is right and where it is wrong: by category, question type, product type and answer frequency.

>>> pattern("What color is the mug?")
'what color is the'
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from data_prep.records import Example, Prediction
from vqa.evaluation.statistics import interval
from vqa.normalize import normalize

FREQUENCY = ("never in training", "seldom (1 to 9)", "often (10 or more)")
PATTERN_WORDS = 4

# Answers that look alike in an image: the report's "visually similar". Words of one group, or of one family of colors.
_LOOKALIKES = (
    {"black", "navy", "charcoal", "darkgray", "gray", "grey", "blue"},
    {"white", "cream", "ivory", "beige", "silver", "gray", "grey"},
    {"brown", "tan", "beige", "gold", "bronze", "copper", "orange"},
    {"red", "maroon", "burgundy", "pink", "orange"},
    {"purple", "violet", "pink", "lavender", "blue"},
    {"green", "teal", "olive", "turquoise", "blue"},
    {"round", "circle", "circular", "oval"},
    {"square", "rectangle", "rectangular"},
    {"leather", "leatherette", "suede", "rubber", "plastic"},
    {"metal", "steel", "aluminum", "silver", "chrome"},
    {"wood", "bamboo", "wicker"},
    {"cotton", "fabric", "cloth", "polyester", "linen", "wool", "felt"},
)  # fmt: skip
ERROR_KINDS = {
    "fine-grained": "same word stem, nearly the same spelling, one contained in the other, or two counts: the model saw the "
    "right thing and missed its detail",
    "visually similar": "truth and answer belong to one family of colors, shapes or materials that look alike",
    "ambiguous description": "the same question about the same product type has several truths in training, the "
    "model's answer among them",
    "empty": "the model gave no answer",
    "other": "none of these",
}


def pattern(question: str) -> str:
    """The first words of a question, as the blind guess sees it."""
    return " ".join(re.findall(r"[a-z0-9']+", question.lower())[:PATTERN_WORDS])


def blind_answers(train: Iterable[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """The most frequent training answer per question pattern, for each question; overall where the pattern is new.

    The floor that a model must beat to have looked at the image (Goyal et al. 2017, "Making the V in VQA Matter").
    Ties go to the answer that sorts first.

    Args:
        train: (question, answer).
        questions: to answer.
    """
    by_pattern: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for question, answer in train:
        by_pattern[pattern(question)][answer] += 1
        overall[answer] += 1
    best = {key: min(count, key=lambda a: (-count[a], a)) for key, count in by_pattern.items()}
    fallback = min(overall, key=lambda a: (-overall[a], a)) if overall else ""
    return [best.get(pattern(question), fallback) for question in questions]


def frequency_class(truth: str, trained: Mapping[str, int]) -> str:
    """How often the truth was an answer in training, in three classes; keys of ``trained`` are normalized."""
    seen = trained.get(normalize(truth), 0)
    return FREQUENCY[0] if not seen else FREQUENCY[1] if seen < 10 else FREQUENCY[2]


def by_group(
    groups: Sequence[str], variants: Mapping[str, np.ndarray], clusters: np.ndarray, *, most: int = 15
) -> list[dict[str, Any]]:
    """Mean with interval per group and variant, the largest groups first; the rest are summed as one.

    Args:
        groups: the group of each question (N,).
        variants: variant → score of each question (N,).
        clusters: product of each question (N,).
    """
    counted = Counter(groups)
    shown = [g for g, _ in sorted(counted.items(), key=lambda kv: (-kv[1], kv[0]))[:most]]
    labels = np.array(groups, dtype=object)
    masks = {name or "(not given)": labels == name for name in shown}
    rest = len(counted) - len(shown)
    if rest > 0:
        masks[f"{rest} others"] = ~np.isin(labels, shown)
    return [
        {
            "group": name,
            "questions": int(mask.sum()),
            "products": len(np.unique(clusters[mask])),
            "variants": {v: asdict(interval(values[mask], clusters[mask])) for v, values in variants.items()},
        }
        for name, mask in masks.items()
    ]


def confusions(predictions: Iterable[Prediction], *, most: int = 20) -> list[dict[str, Any]]:
    """Which truth becomes which answer, most frequent first, with the ids of up to three questions."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for p in predictions:
        key = (normalize(p.truth), normalize(p.answer))
        if key[0] != key[1]:
            found[key].append(p.id)
    ranked = sorted(found.items(), key=lambda kv: (-len(kv[1]), kv[0]))[:most]
    return [{"truth": t, "answer": a, "questions": len(ids), "examples": sorted(ids)[:3]} for (t, a), ids in ranked]


def training_answers(train: Iterable[Example]) -> dict[tuple[str, str], set[str]]:
    """(product type, question pattern) → the answers it has in training."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for e in train:
        found[(e.product_type, pattern(e.question))].add(normalize(e.answer))
    return found


def error_kind(truth: str, answer: str, known: set[str] | None = None) -> str:
    """One of `ERROR_KINDS` for a wrong answer; a rule of thumb that reads words, not images.

    Args:
        known: training answers to the same question pattern about the same product type.
    """
    a, b = normalize(truth), normalize(answer)
    if not b:
        return "empty"
    near = len(a) > 3 and len(b) > 3 and Levenshtein.distance(a, b) <= 2
    inside = min(len(a), len(b)) > 2 and (a in b or b in a)
    if near or inside or (a.isdigit() and b.isdigit()):
        return "fine-grained"
    if any(a in group and b in group for group in _LOOKALIKES):
        return "visually similar"
    if known and len(known) > 1 and a in known and b in known:
        return "ambiguous description"
    return "other"
