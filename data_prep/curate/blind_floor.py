"""What somebody would score who reads the questions and never sees an image.

The blind floor is the number to compare a model with. A blind guesser answers each question of the test split with the
answer that was most frequent in the training split, for the finest of these that training has seen:

1. the same words,
2. the question's pattern (its first words without articles, ``what color mug``) and its type,
3. its type,
4. anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from data_prep.curate.question_text import question_pattern, words_of
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
        "exact_match": share(right.total(), len(test)),
        "by_question_type": {kind: share(right[kind], asked[kind]) for kind in sorted(asked)},
        "guessed_from": dict(used),
    }


def share(part: int, whole: int) -> float | None:
    """``part / whole`` to four decimals; None where there is nothing."""
    return round(part / whole, 4) if whole else None
