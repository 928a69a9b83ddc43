"""Self-consistency of a generator: some products are asked about twice, and the answers to questions that recur are compared.

It is a ceiling for any model that is trained on the answers: what the teacher does not repeat, no student can learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.curate.question_text import similarity
from data_prep.records import QAPair
from data_prep.verify.equivalents import same_answer

_SHOWN = 20  # disagreements that are kept for a person to look at


@dataclass(frozen=True, slots=True)
class SelfConsistency:
    """How often a generator gives the same answer twice."""

    products: int  # that were asked about twice
    questions: int  # of the second time
    asked_both_times: int  # of those, how many came the first time, too
    same_answer: int  # of those, how many got the same answer
    same_answer_share: float | None  # of asked_both_times, 0 to 1; None where no question recurred
    different_answers: list[list[str]]  # up to twenty: item id, question, first answer, second answer


def self_consistency(
    first: Mapping[str, Sequence[QAPair]], second: Mapping[str, Sequence[QAPair]], similar: float
) -> SelfConsistency:
    """Compare the pairs of products that were asked about twice.

    Args:
        first, second: pairs by item id.
        similar: share of their content words from which on two questions count as the same
            (`data_prep.curate.question_text.similarity`).
    """
    both = sorted(first.keys() & second.keys())
    asked = same = repeated = 0
    different: list[list[str]] = []
    for item in both:
        left = list(first[item])
        for pair in second[item]:
            asked += 1
            scores = [similarity(pair.question, other.question) for other in left]
            if not scores or max(scores) < similar:
                continue
            nearest = left.pop(scores.index(max(scores)))  # each question of the first time is matched once
            repeated += 1
            if same_answer(pair.answer, nearest.answer):
                same += 1
            elif len(different) < _SHOWN:
                different.append([item, nearest.question, nearest.answer, pair.answer])
    share = round(same / repeated, 4) if repeated else None
    return SelfConsistency(len(both), asked, repeated, same, share, different)
