"""Compares two sets of predictions, paired, on the questions that both answered.

>>> compare(run_a, run_b).paired.difference.mean   # b minus a
0.042
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data_prep.outcomes import UserError
from data_prep.records import Prediction
from vqa.evaluation.metrics import exact_match
from vqa.evaluation.statistics import Paired, format_interval, label_codes, paired
from vqa.normalize import normalize


@dataclass(frozen=True, slots=True)
class Comparison:
    """Exact match of two runs on the questions that both answered."""

    names: tuple[str, str]
    shared: int  # questions compared
    only: tuple[int, int]  # questions that only one of them answered
    other_truth: int  # questions left out because their truth has changed
    same_answer: int
    paired: Paired


def compare(
    before: Iterable[Prediction], after: Iterable[Prediction], names: tuple[str, str] = ("a", "b")
) -> Comparison:
    """Compare two runs' answers; the difference is ``after`` minus ``before``.

    Questions are matched by id. A question whose truth differs between the runs is counted and left out.

    Raises:
        UserError: they share no question.
    """
    first, second = ({p.id: p for p in predictions} for predictions in (before, after))
    both = sorted(first.keys() & second.keys())
    shared = [key for key in both if normalize(first[key].truth) == normalize(second[key].truth)]
    if not shared:
        raise UserError(
            f"{names[0]} ({len(first):,} answers) and {names[1]} ({len(second):,} answers) share no question. Compare runs "
            f"of the same dataset, evaluated on the same split."
        )
    right = [np.array([exact_match(side[k].truth, side[k].answer) for k in shared]) for side in (first, second)]
    return Comparison(
        names=names,
        shared=len(shared),
        only=(len(first) - len(both), len(second) - len(both)),
        other_truth=len(both) - len(shared),
        same_answer=sum(normalize(first[k].answer) == normalize(second[k].answer) for k in shared),
        paired=paired(right[0], right[1], label_codes([first[key].item_id for key in shared])),
    )


def render(result: Comparison) -> str:
    """The comparison as lines of text."""
    (a, b), found = result.names, result.paired
    lines = [f"{result.shared:,} shared questions about {found.difference.clusters:,} products"]
    left_out = [f"{n:,} only in {name}" for n, name in zip(result.only, result.names, strict=True) if n]
    if result.other_truth:
        left_out.append(f"{result.other_truth:,} whose truth differs")
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    for name, side in ((a, found.before), (b, found.after)):
        lines.append(f"  {name:<24} exact match {side.mean:.4f}  {format_interval(side)}")
    difference, test = found.difference, found.mcnemar
    lines.append(f"  difference               {difference.mean:+.4f}  {format_interval(difference, '+.4f')}")
    lines.append(f"  McNemar p = {test.p:.2g} (only {b} right: {test.fixed:,}, only {a} right: {test.broken:,})")
    if found.detectable:
        lines.append(f"  smallest difference that this many questions can show: {found.detectable:.4f}")
    return "\n".join(lines)
