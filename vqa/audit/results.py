"""What people's verdicts say about the labels, about each other and about every model.

A question that several people judged counts once, with the mean of their verdicts. A model is right by a person's verdict
- where the person calls the generated answer right: if the model gives it;
- where they call it wrong: if the model gives the answer that the person wrote instead, if any;
- where it cannot be seen, or the question is bad: never, since no answer is right.
So the best score that a model can reach against people is the share of questions that have a right answer.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.records import Example
from vqa.audit.estimates import Judged, kappa, prediction_powered, weighted_share
from vqa.audit.sampling import Sample
from vqa.audit.verdicts import RIGHT, VERDICTS, WRONG, People, Verdict
from vqa.evaluation.metrics import exact_match
from vqa.evaluation.statistics import Interval, interval, label_codes


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """How many generated answers of one group people do not call right, estimated for the whole split."""

    group: str
    judged: int  # questions of the sample
    error: Interval


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two people on the questions that both judged."""

    people: tuple[str, str]
    questions: int
    same: int
    kappa: float | None  # None where nothing can be said; see `vqa.audit.estimates.kappa`


@dataclass(frozen=True, slots=True)
class AgainstPeople:
    """One model's accuracy against people, and what else could have been said."""

    model: str
    variant: str  # "base" or "lora"
    people: Interval  # by prediction-powered inference
    people_alone: Interval  # from the judged questions only
    generated: Interval  # against the generated answers, on all questions
    judged: int  # questions that were judged and that the model answered


@dataclass(frozen=True, slots=True)
class AuditResult:
    """Everything that the verdicts say."""

    sample: str
    people: dict[str, int]  # person → questions judged
    drawn: int
    judged: int  # by one person at least
    error: Interval  # of the generated answers: not called right
    verdicts: dict[str, Interval]  # "wrong" → estimated share of the split
    answerable: Interval  # have a right answer, the generated one or another: the best that a model can reach
    by: dict[str, list[LabelErrors]]  # "question type" → its groups
    agreement: list[Agreement]
    models: list[AgainstPeople] = field(default_factory=list)


def audit_result(
    sample: Sample,
    people: People,
    test: Sequence[Example],
    groups: Mapping[str, Mapping[str, str]],
    answers: Mapping[tuple[str, str], Mapping[str, str]],
) -> AuditResult:
    """Compute everything.

    Args:
        sample: what was drawn, from this test split.
        people: their verdicts on it.
        test: the whole test split.
        groups: by name of a field ("question type"): question id → its group.
        answers: by model and variant: question id → the model's answer.
    """
    rows = list(test)
    given = _by_question(sample, people)
    judged = _judged(sample, rows, [i for i, e in enumerate(rows) if e.id in given])
    said = [given[rows[i].id] for i in judged.sampled]
    wrong = np.array([_share(verdicts, lambda v: v.verdict != RIGHT) for verdicts in said])
    return AuditResult(
        sample=people.sample,
        people={person: len(verdicts.keys() & set(sample.ids)) for person, verdicts in people.verdicts.items()},
        drawn=len(sample.ids),
        judged=len(said),
        error=weighted_share(judged, wrong),
        verdicts={kind: weighted_share(judged, _kind(said, kind)) for kind in VERDICTS if kind != RIGHT},
        answerable=weighted_share(
            judged, np.array([_share(v, lambda one: one.verdict == RIGHT or bool(one.answer)) for v in said])
        ),
        by={
            name: _by_group(judged, [known.get(rows[i].id, "") for i in judged.sampled], wrong)
            for name, known in groups.items()
        },
        agreement=list(_agreement(people)),
        models=[_against(name, said_by, rows, sample, given) for name, said_by in answers.items() if said_by],
    )


def _judged(sample: Sample, rows: Sequence[Example], sampled: Sequence[int]) -> Judged:
    return Judged(
        label_codes([sample.stratum_of[e.id] for e in rows]),
        label_codes([e.item_id for e in rows]),
        np.array(sampled, dtype=np.int64),
    )


def _by_question(sample: Sample, people: People) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for verdicts in people.verdicts.values():
        for question in sample.ids:
            if question in verdicts:
                found.setdefault(question, []).append(verdicts[question])
    return found


def _share(verdicts: Sequence[Verdict], test: Callable[[Verdict], bool]) -> float:
    return sum(map(test, verdicts)) / len(verdicts)


def _kind(said: Sequence[Sequence[Verdict]], kind: str) -> np.ndarray:
    return np.array([_share(verdicts, lambda v: v.verdict == kind) for verdicts in said])


def _by_group(judged: Judged, groups: Sequence[str], wrong: np.ndarray) -> list[LabelErrors]:
    """The groups with the most judged questions first."""
    counted = Counter(group for group in groups if group)
    labels = np.array(groups, dtype=object)
    return [
        LabelErrors(group, count, weighted_share(judged, wrong, labels == group))
        for group, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    ]


def _agreement(people: People) -> Sequence[Agreement]:
    found = []
    for one, other in itertools.combinations(people.verdicts, 2):
        both = sorted(people.verdicts[one].keys() & people.verdicts[other].keys())
        a, b = ([people.verdicts[person][q].verdict for q in both] for person in (one, other))
        found.append(Agreement((one, other), len(both), sum(x == y for x, y in zip(a, b, strict=True)), kappa(a, b)))
    return found


def _against(
    name: tuple[str, str],
    said: Mapping[str, str],
    test: Sequence[Example],
    sample: Sample,
    given: Mapping[str, Sequence[Verdict]],
) -> AgainstPeople:
    """On the questions that the model answered: a question that failed says nothing about it."""
    rows = [e for e in test if e.id in said]
    judged = _judged(sample, rows, [i for i, e in enumerate(rows) if e.id in given])
    machine = np.array([float(exact_match(e.answer, said[e.id])) for e in rows])
    by_people = np.array(
        [np.mean([_right(verdict, rows[i], said[rows[i].id]) for verdict in given[rows[i].id]]) for i in judged.sampled]
    )
    return AgainstPeople(
        *name,
        people=prediction_powered(judged, machine, by_people),
        people_alone=weighted_share(judged, by_people),
        generated=interval(machine, judged.clusters),
        judged=len(judged.sampled),
    )


def _right(verdict: Verdict, example: Example, answer: str) -> float:
    if verdict.verdict == RIGHT:
        return float(exact_match(example.answer, answer))
    if verdict.verdict == WRONG and verdict.answer:
        return float(exact_match(verdict.answer, answer))
    return 0.0
