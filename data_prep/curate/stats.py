"""Figures about a curated dataset: how answers, question types and product types are distributed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data_prep.curate.blind_floor import blind_floor, share
from data_prep.records import Example


def describe(splits: Mapping[str, Sequence[Example]], group_sizes: Sequence[int]) -> dict[str, Any]:
    """What stats.json holds beside the counts of what was dropped.

    Args:
        splits: rows by split.
        group_sizes: products of each image group, largest first.
    """
    rows = [row for part in splits.values() for row in part]
    answers = Counter(row.answer for row in rows)
    yes_no = answers["yes"] + answers["no"]
    return {
        "splits": {name: _split(part) for name, part in splits.items()},
        "image_groups": {
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
            "share": share(yes_no, len(rows)),
            "yes_of_yes_no": share(answers["yes"], yes_no),
        },
        "question_types": _table(rows, lambda e: e.question_type),
        "categories": _table(rows, lambda e: e.category or "none"),
        "product_types": _types(splits),
        "blind_floor": asdict(blind_floor(splits["train"], splits["test"])),
    }


def _split(rows: Sequence[Example]) -> dict[str, int]:
    return {
        "questions": len(rows),
        "products": len({row.item_id for row in rows}),
        "images": len({row.image_id for row in rows}),
        "image_groups": len({row.image_group for row in rows}),
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
            "share": share(counter.total(), len(rows)),
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
    return share(sum(row.answer not in seen for row in splits["test"]), len(splits["test"]))


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0
