"""Compares two sets of predictions on the questions that they share, paired.

>>> compare(run_a, run_b)["paired"]["difference"]["mean"]   # b minus a
0.042
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_prep.outcomes import UserError
from data_prep.records import Prediction
from vqa.evaluation.metrics import exact_match
from vqa.evaluation.statistics import bounds, codes, paired
from vqa.normalize import normalize


def compare(
    before: Iterable[Prediction], after: Iterable[Prediction], names: tuple[str, str] = ("a", "b")
) -> dict[str, Any]:
    """Exact match of two runs on the questions that both answered, and the difference ``after`` minus ``before``.

    Questions are the same where their ids are, and both truths agree; a question whose truth differs is counted and left out.

    Raises:
        UserError: there is no shared question.
    """
    first, second = ({p.id: p for p in predictions} for predictions in (before, after))
    both = sorted(first.keys() & second.keys())
    shared = [key for key in both if normalize(first[key].truth) == normalize(second[key].truth)]
    if not shared:
        raise UserError(
            f"{names[0]} ({len(first):,} answers) and {names[1]} ({len(second):,}) share no question: "
            f"were they made from the same dataset, and evaluated on the same split?"
        )
    right = [np.array([exact_match(side[k].truth, side[k].answer) for k in shared]) for side in (first, second)]
    result = paired(right[0], right[1], codes([first[key].item_id for key in shared]))
    return {
        "names": list(names),
        "shared": len(shared),
        "only": [len(first) - len(both), len(second) - len(both)],
        "other_truth": len(both) - len(shared),
        "same_answer": sum(normalize(first[k].answer) == normalize(second[k].answer) for k in shared),
        "paired": result,
    }


def render(result: dict[str, Any]) -> str:
    """The comparison as lines of text."""
    a, b = result["names"]
    found, difference, test = (result["paired"], result["paired"]["difference"], result["paired"]["mcnemar"])
    lines = [f"{result['shared']:,} shared questions about {difference['clusters']:,} products"]
    left_out = [f"{n:,} only in {name}" for n, name in zip(result["only"], (a, b), strict=True) if n]
    if result["other_truth"]:
        left_out.append(f"{result['other_truth']:,} with another truth")
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    for name, side in ((a, found["before"]), (b, found["after"])):
        lines.append(f"  {name:<24} exact match {side['mean']:.4f}  {bounds(side)}")
    lines.append(f"  difference               {difference['mean']:+.4f}  {bounds(difference, '+.4f')}")
    lines.append(
        f"  McNemar p = {test['p']:.2g} ({b} alone right: {test['fixed']:,}, {a} alone right: {test['broken']:,})"
    )
    if found["detectable"]:
        lines.append(f"  smallest difference that these questions can show: {found['detectable']:.4f}")
    return "\n".join(lines)
