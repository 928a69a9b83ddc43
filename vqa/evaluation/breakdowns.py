"""Where a model is right and where it is wrong: by category, question type, product type and answer frequency.

>>> error_kind("round", "oval")
'visually similar'
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from data_prep.curate.question_text import question_pattern
from data_prep.normalize import normalize
from data_prep.records import Answered, Example
from vqa.evaluation.statistics import Interval, interval

FREQUENCY = ("never in training", "rare (1 to 9)", "frequent (10 or more)")

# Answers that look alike in an image, by family of colors, shapes or materials.
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
    "fine-grained": "nearly the same spelling, one contained in the other, or two numbers: the model saw the right thing "
    "and missed a detail",
    "visually similar": "truth and answer belong to one family of colors, shapes or materials that look alike",
    "ambiguous description": "training has several answers to this question about this product type, truth and model's "
    "answer among them",
    "empty": "the model gave no answer",
    "other": "none of these",
}


@dataclass(frozen=True, slots=True)
class Group:
    """The questions of one category or type, and how each variant does on them."""

    group: str
    questions: int
    products: int
    variants: dict[str, Interval]  # "base", "lora" and "blind" → exact match


@dataclass(frozen=True, slots=True)
class Confusion:
    """One truth that became one wrong answer; both normalized."""

    truth: str
    answer: str
    questions: int
    examples: list[str]  # ids of up to three of the questions


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many wrong answers are of one kind."""

    kind: str  # one of `ERROR_KINDS`
    questions: int
    definition: str


def frequency_class(truth: str, trained: Mapping[str, int]) -> str:
    """How often the truth was an answer in training.

    Args:
        trained: normalized answer → how often training has it.
    """
    seen = trained.get(normalize(truth), 0)
    return FREQUENCY[0] if not seen else FREQUENCY[1] if seen < 10 else FREQUENCY[2]


def by_group(
    groups: Sequence[str], variants: Mapping[str, np.ndarray], clusters: np.ndarray, *, most: int = 15
) -> list[Group]:
    """Mean with interval per group and variant, the largest groups first; those beyond ``most`` are one group.

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
        Group(
            group=name,
            questions=int(mask.sum()),
            products=len(np.unique(clusters[mask])),
            variants={v: interval(values[mask], clusters[mask]) for v, values in variants.items()},
        )
        for name, mask in masks.items()
    ]


def confusions(predictions: Iterable[Answered], *, most: int = 20) -> list[Confusion]:
    """Which truth becomes which wrong answer, most frequent first."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for p in predictions:
        key = (normalize(p.truth), normalize(p.answer))
        if key[0] != key[1]:
            found[key].append(p.id)
    ranked = sorted(found.items(), key=lambda kv: (-len(kv[1]), kv[0]))[:most]
    return [Confusion(truth, answer, len(ids), sorted(ids)[:3]) for (truth, answer), ids in ranked]


def training_answers(train: Iterable[Example]) -> dict[tuple[str, str], set[str]]:
    """(product type, question pattern) → its normalized answers in training."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for e in train:
        found[(e.product_type, question_pattern(e.question))].add(normalize(e.answer))
    return found


def error_kind(truth: str, answer: str, known: set[str] | None = None) -> str:
    """One of `ERROR_KINDS` for a wrong answer: a heuristic on the words, which does not look at the image.

    Args:
        known: the training answers to the same question pattern about the same product type.
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
