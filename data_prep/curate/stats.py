"""Figures about a curated dataset: what was kept, and how answers, question types and product types are distributed.

stats.json is a `DatasetStats`::

    {"products": {"read": 1500, "kept": 1436, "dropped": {"image_truncated": 3, "no_reply": 61}},
     "question_types": {"color": {"questions": 2310, "share": 0.3217, "distinct_answers": 41,
                                  "most_frequent": [["black", 512], ["white", 430], …]}, …},
     "blind_floor": {"exact_match": 0.284, "by_question_type": {"color": 0.2103, …}}, …}
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_prep.curate.blind_floor import BlindFloor, blind_floor, share
from data_prep.records import Example

Splits = Mapping[str, Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Kept:
    """How many came in and stayed, of products or of question/answer pairs: ``read`` is ``kept`` plus all of ``dropped``."""

    read: int
    kept: int
    dropped: dict[str, int]  # by reason


@dataclass(frozen=True, slots=True)
class SplitSize:
    """The size of one split."""

    questions: int
    products: int
    images: int


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of all splits."""

    distinct: int
    entropy_bits: float  # of their distribution: 0 if all are equal, log2(distinct) if all are equally frequent
    most_frequent: list[tuple[str, int]]  # the thirty most frequent, with their counts
    seen_once: int  # answers that one question has
    test_answers_unseen_in_training: (
        float | None
    )  # share of test questions that no trained model can be expected to answer


@dataclass(frozen=True, slots=True)
class YesNo:
    """Questions that are answered by yes or no."""

    share: float | None  # of all questions
    yes_of_yes_no: float | None  # how many of them are answered by yes


@dataclass(frozen=True, slots=True)
class QuestionGroup:
    """The questions of one type or category."""

    questions: int
    share: float | None  # of all questions
    distinct_answers: int
    most_frequent: list[tuple[str, int]]  # the five most frequent answers, with their counts


@dataclass(frozen=True, slots=True)
class AnsweredBy:
    """What one version of the generator's model answered."""

    questions: int
    products: int


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """What stats.json holds. Shares are from 0 to 1, and None where there is nothing to take a share of."""

    products: Kept
    pairs: Kept
    splits: dict[str, SplitSize]
    answers: Answers
    yes_no: YesNo
    question_types: dict[str, QuestionGroup]  # most frequent first
    categories: dict[str, QuestionGroup]  # "none" for pairs without one
    product_types: dict[str, dict[str, int]]  # products in each split, of the fifty largest types
    blind_floor: BlindFloor
    model_versions: dict[str, AnsweredBy]  # most questions first; "not stated" where the API does not say


def describe(splits: Splits, *, products: Kept, pairs: Kept) -> DatasetStats:
    """Compute the figures.

    Args:
        splits: rows by split.
        products, pairs: what was kept and dropped.
    """
    rows = [row for part in splits.values() for row in part]
    answers = Counter(row.answer for row in rows)
    yes_no = answers["yes"] + answers["no"]
    return DatasetStats(
        products=products,
        pairs=pairs,
        splits={name: _split_size(part) for name, part in splits.items()},
        answers=Answers(
            distinct=len(answers),
            entropy_bits=round(_entropy(answers), 3),
            most_frequent=answers.most_common(30),
            seen_once=sum(count == 1 for count in answers.values()),
            test_answers_unseen_in_training=_unseen(splits),
        ),
        yes_no=YesNo(share(yes_no, len(rows)), share(answers["yes"], yes_no)),
        question_types=_by_group(rows, lambda e: e.question_type),
        categories=_by_group(rows, lambda e: e.category or "none"),
        product_types=_product_types(splits),
        blind_floor=blind_floor(splits["train"], splits["test"]),
        model_versions=_model_versions(rows),
    )


def _split_size(rows: Sequence[Example]) -> SplitSize:
    return SplitSize(
        questions=len(rows),
        products=len({row.item_id for row in rows}),
        images=len({row.image_id for row in rows}),
    )


def _by_group(rows: Sequence[Example], key: Callable[[Example], str]) -> dict[str, QuestionGroup]:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[key(row)][row.answer] += 1
    ordered = sorted(answers.items(), key=lambda item: (-item[1].total(), item[0]))
    return {
        value: QuestionGroup(seen.total(), share(seen.total(), len(rows)), len(seen), seen.most_common(5))
        for value, seen in ordered
    }


def _product_types(splits: Splits) -> dict[str, dict[str, int]]:
    members: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, rows in splits.items():
        for row in rows:
            members[row.product_type or "none"][name].add(row.item_id)
    ordered = sorted(members.items(), key=lambda item: (-sum(map(len, item[1].values())), item[0]))
    return {kind: {name: len(parts[name]) for name in splits} for kind, parts in ordered[:50]}


def _model_versions(rows: Sequence[Example]) -> dict[str, AnsweredBy]:
    questions = Counter(row.model_version or "not stated" for row in rows)
    products = Counter(version for version, _ in {(row.model_version or "not stated", row.item_id) for row in rows})
    return {version: AnsweredBy(count, products[version]) for version, count in questions.most_common()}


def _unseen(splits: Splits) -> float | None:
    seen = {row.answer for row in splits["train"]}
    return share(sum(row.answer not in seen for row in splits["test"]), len(splits["test"]))


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0
