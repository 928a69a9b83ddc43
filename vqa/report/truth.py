"""How far the generated answers can be trusted: others' opinions of them, people's verdicts, and every score crossed with these."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.records import Example, Opinions
from vqa.audit.results import AuditResult
from vqa.evaluation.bertscore import BertSettings
from vqa.evaluation.metrics import score
from vqa.evaluation.statistics import Interval, interval, label_codes
from vqa.report.inputs import ReportInputs

Answer = tuple[Example, str]  # a question with a model's answer

LABELS = {
    "seen": "another model, with the image and without the listing",
    "blind": "a model without the image",
    "witness": "the listing's own field",
}
# A model's scores are given on these parts of the test questions, beside all of them.
_PARTS = {"agreed": ("seen", "agreed"), "contested": ("seen", "contested"), "not guessed blind": ("blind", "wrong")}


@dataclass(frozen=True, slots=True)
class Guessable:
    """How often a model that has only the question gives the generated answer."""

    question_type: str
    right: Interval
    chance: float  # one in so many different answers as the type has: 0.5 with two


@dataclass(frozen=True, slots=True)
class Part:
    """One model's scores on a part of the questions that all of its variants answered."""

    name: str  # "all", or one of those that opinions make
    questions: int
    products: int
    metrics: dict[str, dict[str, Interval | float]]  # variant → as `vqa.evaluation.metrics.Scores`


@dataclass(frozen=True, slots=True)
class TruthFigures:
    """What report.json holds about the answers' truth."""

    opinions: dict[str, dict[str, int]]  # "seen" → "agreed" → test questions
    guessable: list[Guessable]  # by question type, the largest first
    parts: dict[str, list[Part]] = field(default_factory=dict)  # model → all first
    self_consistency: Mapping[str, Any] | None = None  # `data_prep.verify.self_consistency`; None: not asked twice
    audit: AuditResult | None = None


def truth_figures(inputs: ReportInputs) -> TruthFigures | None:
    """Everything; None where nobody has an opinion and the generator was not asked twice."""
    test, opinions = inputs.test, inputs.opinions
    counts = {
        name: dict(Counter(str(getattr(opinions[e.id], name)) for e in test if e.id in opinions)) for name in LABELS
    }
    heard = {name: found for name, found in counts.items() if found.keys() - {"unchecked", "silent"}}
    twice = inputs.stats.get("self_consistency")
    if not heard and inputs.audit is None and not twice:
        return None
    return TruthFigures(
        heard, guessable([*inputs.train, *test], test, opinions), self_consistency=twice, audit=inputs.audit
    )


def guessable(known: Sequence[Example], test: Sequence[Example], opinions: Mapping[str, Opinions]) -> list[Guessable]:
    """By question type, against chance.

    Args:
        known: questions whose answers count as possible.
        test: the questions to tell about.
        opinions: by question id.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for e in known:
        answers[e.question_type].add(e.answer)
    rows: dict[str, list[Example]] = defaultdict(list)
    for e in test:
        if e.id in opinions and opinions[e.id].blind != "unchecked":
            rows[e.question_type].append(e)
    return [
        Guessable(
            kind,
            interval(
                np.array([float(opinions[e.id].blind == "right") for e in asked]),
                label_codes([e.item_id for e in asked]),
            ),
            1 / max(2, len(answers[kind])),
        )
        for kind, asked in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def parts(
    answers: Mapping[str, Sequence[Answer]], opinions: Mapping[str, Opinions], bert: BertSettings | None
) -> list[Part]:
    """A model's scores on all questions and on the parts that opinions make; empty where there are none.

    Args:
        answers: by variant, all about the same questions in the same order.
        opinions: by question id.
        bert: for BERTScore; None leaves it out.
    """
    examples = [e for e, _ in next(iter(answers.values()), ())]
    chosen = {"all": np.ones(len(examples), dtype=bool)}
    for name, (of, value) in _PARTS.items():
        mask = np.array([e.id in opinions and getattr(opinions[e.id], of) == value for e in examples], dtype=bool)
        if mask.any():
            chosen[name] = mask
    if len(chosen) < 2:
        return []
    found = []
    for name, mask in chosen.items():
        inside = np.flatnonzero(mask).tolist()
        clusters = label_codes([examples[i].item_id for i in inside])
        metrics = {
            variant: score([(said[i][0].answer, said[i][1]) for i in inside], clusters, bert).metrics
            for variant, said in answers.items()
        }
        found.append(Part(name, len(inside), len(set(clusters.tolist())), metrics))
    return found
