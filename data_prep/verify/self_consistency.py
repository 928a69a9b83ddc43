"""How far a generator agrees with itself: products asked about twice, and the answers to the questions that came both times.

A ceiling for any model that is trained on the answers: what the teacher does not say twice, nobody can learn from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.curate.question_text import similarity
from data_prep.records import QAPair


def agreement(
    first: Mapping[str, Sequence[QAPair]], second: Mapping[str, Sequence[QAPair]], similar: float
) -> dict[str, Any]:
    """Compare the pairs of products that were asked about twice.

    Args:
        first, second: pairs by item id.
        similar: part of their content words that two questions share to be the same (`data_prep.curate.question_text.similarity`).

    Returns:
        Counts of products, of questions of the second time, of those that came the first time too, and of the same answers among
        them; ``same_answer_share``, from 0 to 1, None where no question came twice; and up to twenty disagreements.
    """
    both = sorted(first.keys() & second.keys())
    asked = same = repeated = 0
    differing: list[list[str]] = []
    for item in both:
        left = list(first[item])
        for pair in second[item]:
            asked += 1
            alike = [similarity(pair.question, other.question) for other in left]
            if not alike or max(alike) < similar:
                continue
            nearest = left[alike.index(max(alike))]
            left.remove(nearest)
            repeated += 1
            same += pair.answer == nearest.answer
            if pair.answer != nearest.answer and len(differing) < 20:
                differing.append([item, nearest.question, nearest.answer, pair.answer])
    return {
        "products": len(both),
        "questions": asked,
        "asked_both_times": repeated,
        "same_answer": same,
        "same_answer_share": round(same / repeated, 4) if repeated else None,
        "different_answers": differing,
    }
