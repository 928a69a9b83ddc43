"""Figures about a data set: how answers are spread, and what somebody would score who never sees a picture.

The blind floor is the number to compare a model with. A blind guesser answers each question of the test split with the
answer that was most frequent in the training split, for the finest of these that training has seen:

1. the same words,
2. the question's pattern (its first words without articles, ``what color mug``) and its type,
3. its type,
4. anything.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from data_prep.questions import question_pattern, words_of
from data_prep.records import Example

Key = Callable[[Example], Hashable]

_KEYS: tuple[tuple[str, Key], ...] = (
    ("question", lambda e: " ".join(words_of(e.question))),
    ("pattern", lambda e: (question_pattern(e.question), e.question_type)),
    ("question type", lambda e: e.question_type),
    ("anything", lambda e: None),
)
# A single earlier question says little: the finer keys count from this many on.
_ENOUGH = 3


def describe(splits: Mapping[str, Sequence[Example]], group_sizes: Sequence[int]) -> dict[str, Any]:
    """What stats.json holds beside the counts of what was dropped.

    Args:
        splits: rows by split.
        group_sizes: products of each picture group, largest first.
    """
    rows = [row for part in splits.values() for row in part]
    answers = Counter(row.answer for row in rows)
    yes_no = answers["yes"] + answers["no"]
    return {
        "splits": {name: _split(part) for name, part in splits.items()},
        "picture_groups": {
            "groups": len(group_sizes),
            "products_in_shared_groups": sum(size for size in group_sizes if size > 1),
            "largest": group_sizes[0] if group_sizes else 0,
        },
        "answers": {
            "distinct": len(answers),
            "entropy_bits": round(_entropy(answers), 3),
            "most_frequent": answers.most_common(30),
            "seen_once": sum(1 for count in answers.values() if count == 1),
            "test_answers_unseen_in_training": _unseen(splits),
        },
        "yes_no": {
            "share": _share(yes_no, len(rows)),
            "yes_of_yes_no": _share(answers["yes"], yes_no),
        },
        "question_types": _table(rows, lambda e: e.question_type),
        "categories": _table(rows, lambda e: e.category or "none"),
        "product_types": _types(splits),
        "blind_floor": blind_floor(splits["train"], splits["test"]),
    }


def blind_floor(train: Sequence[Example], test: Sequence[Example]) -> dict[str, Any]:
    """Exact match of a guesser who reads the questions and sees nothing, in total and by question type.

    Answers of equal frequency are told apart by the alphabet, so that the figure does not depend on the order of rows.
    """
    tables: list[dict[Hashable, Counter[str]]] = [defaultdict(Counter) for _ in _KEYS]
    for row in train:
        for table, (_, key) in zip(tables, _KEYS, strict=True):
            table[key(row)][row.answer] += 1
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for row in test:
        asked[row.question_type] += 1
        for table, (name, key) in zip(tables, _KEYS, strict=True):
            seen = table.get(key(row))
            if seen and (seen.total() >= _ENOUGH or name == "anything"):
                guess = min(seen, key=lambda answer: (-seen[answer], answer))
                right[row.question_type] += guess == row.answer
                used[name] += 1
                break
    return {
        "exact_match": _share(right.total(), len(test)),
        "by_question_type": {kind: _share(right[kind], asked[kind]) for kind in sorted(asked)},
        "guessed_from": dict(used),
    }


def _split(rows: Sequence[Example]) -> dict[str, int]:
    return {
        "questions": len(rows),
        "products": len({row.item_id for row in rows}),
        "pictures": len({row.image_id for row in rows}),
        "picture_groups": len({row.picture_group for row in rows}),
    }


def _table(rows: Sequence[Example], key: Callable[[Example], str]) -> dict[str, dict[str, Any]]:
    """By value of ``key``, most frequent first: how many questions, which part of all, and the answers they get most."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[key(row)][row.answer] += 1
    ordered = sorted(answers.items(), key=lambda item: (-item[1].total(), item[0]))
    return {
        value: {
            "questions": counter.total(),
            "share": _share(counter.total(), len(rows)),
            "distinct_answers": len(counter),
            "most_frequent": counter.most_common(5),
        }
        for value, counter in ordered
    }


def _types(splits: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """Products of each product type in each split, the fifty largest types."""
    members: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, rows in splits.items():
        for row in rows:
            members[row.product_type or "none"][name].add(row.item_id)
    ordered = sorted(members.items(), key=lambda item: (-sum(map(len, item[1].values())), item[0]))
    return {kind: {name: len(parts[name]) for name in splits} for kind, parts in ordered[:50]}


def _unseen(splits: Mapping[str, Sequence[Example]]) -> float | None:
    """Part of the test questions whose answer never occurs in training: no trained model can be expected to say it."""
    seen = {row.answer for row in splits["train"]}
    return _share(sum(row.answer not in seen for row in splits["test"]), len(splits["test"]))


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
