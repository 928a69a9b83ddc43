"""The score of a guesser who reads the questions and never sees an image: what a model has to beat.

The guesser answers each test question with the most frequent training answer, at the first of these levels that training
covers:

1. the same words,
2. the question's pattern (its first words without articles, ``what color mug``) and its type,
3. its type,
4. all questions.

>>> blind_answers(train, [Example(..., question="What color is the mug?", ...)])
['white']
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from data_prep.curate.question_text import question_pattern, words_of
from data_prep.records import Example

# What is compared at each level, and how many training questions must share it: one or two earlier answers say little.
_LEVELS: tuple[tuple[Callable[[Example], Hashable], int], ...] = (
    (lambda e: " ".join(words_of(e.question)), 3),
    (lambda e: (question_pattern(e.question), e.question_type), 3),
    (lambda e: e.question_type, 3),
    (lambda e: None, 1),
)


@dataclass(frozen=True, slots=True)
class BlindFloor:
    """The guesser's exact match on the test split."""

    exact_match: float | None  # 0 to 1; None where the split is empty
    by_question_type: dict[str, float | None]


def blind_answers(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """The guess for each row of ``test``, in order; "" if there is no training row at all.

    Ties go to the answer that sorts first, so that the guesses do not depend on the order of the training rows.
    """
    levels = []
    for key, enough in _LEVELS:
        answers: dict[Hashable, Counter[str]] = defaultdict(Counter)
        for row in train:
            answers[key(row)][row.answer] += 1
        best = {k: min(seen, key=lambda a: (-seen[a], a)) for k, seen in answers.items() if seen.total() >= enough}
        levels.append((key, best))
    return [next((best[k] for key, best in levels if (k := key(row)) in best), "") for row in test]


def blind_floor(train: Sequence[Example], test: Sequence[Example]) -> BlindFloor:
    """Exact match of `blind_answers`, in total and by question type."""
    asked = Counter(row.question_type for row in test)
    right: Counter[str] = Counter()
    for row, guess in zip(test, blind_answers(train, test), strict=True):
        right[row.question_type] += guess == row.answer
    by_type = {kind: share(right[kind], asked[kind]) for kind in sorted(asked)}
    return BlindFloor(share(right.total(), len(test)), by_type)


def share(part: int, whole: int) -> float | None:
    """``part / whole`` to four decimals; None where there is nothing."""
    return round(part / whole, 4) if whole else None
