"""Every figure of the report, computed from the predictions: what report.json holds and what the page shows.

>>> figures(inputs).models["blip"].paired.difference
Interval(mean=0.31, low=0.27, high=0.35, questions=1460, clusters=292)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.curate.blind_floor import blind_answers
from data_prep.curate.question_text import question_pattern, question_type
from data_prep.normalize import normalize
from data_prep.reasons import in_words
from data_prep.records import Answered, Example, Opinions
from vqa.evaluation import breakdowns
from vqa.evaluation.bertscore import BertUsed
from vqa.evaluation.breakdowns import Confusion, ErrorCount, Group
from vqa.evaluation.collapse import notice
from vqa.evaluation.compare import compare
from vqa.evaluation.entries import Entry
from vqa.evaluation.metrics import DEFINITIONS, Definition, exact_match, score
from vqa.evaluation.statistics import Calibration, Interval, Paired, calibration, interval, label_codes, paired
from vqa.evaluation.verdict import ModelVerdict, Questions, judge
from vqa.report import truth
from vqa.report.inputs import ReportInputs, StageSummary
from vqa.report.truth import TruthFigures, parts, truth_figures

SCHEMA = 1
UNKNOWN = Opinions()


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """How one variant of a model, base or fine-tuned, did on the test questions."""

    metrics: dict[str, Interval | float]  # see `vqa.evaluation.metrics.Scores`
    bertscore: BertUsed | None
    empty_answers: int
    seconds: float  # in the network, for all questions
    calibration: Calibration | None  # None where the answers carry no confidence
    confusions: list[Confusion]  # most frequent first
    top_answers: list[tuple[str, int]]  # the five most frequent normalized answers, and how often each was given


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Everything measured about one model, on the questions that all of its variants answered."""

    questions: int
    products: int
    unshared: int  # questions left out because not every variant answered them
    verdict: ModelVerdict | None = None  # None without answers
    variants: dict[str, VariantFigures] = field(default_factory=dict)  # "base", "lora"
    gaps: dict[str, str] = field(default_factory=dict)  # metric → why it could not be computed
    paired: Paired | None = None  # lora minus base; None unless both answered
    blind: Interval | None = None  # exact match of the blind floor; None without training questions
    breakdowns: dict[str, list[Group]] = field(default_factory=dict)  # "question type" → its groups
    errors: dict[str, list[ErrorCount]] = field(default_factory=dict)  # variant → its wrong answers by kind


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Exact match of two models, second minus first; see `vqa.evaluation.compare`."""

    variant: str  # "base" or "lora", of both models
    names: tuple[str, str]
    shared: int  # questions that both answered
    same_answer: int
    paired: Paired


@dataclass(frozen=True, slots=True)
class ReportFigures:
    """What report.json holds."""

    schema: int  # raised when the meaning of a key changes
    title: str
    warnings: list[str]  # what a reader must know first, a sentence each
    stand_in: bool  # questions and truths came from the stand-in server, not from Gemini
    run: Mapping[str, Any]  # run.json: configuration, commit, versions
    stages: Sequence[StageSummary]
    dataset: Mapping[str, Any]  # 4_curate/stats.json
    models: dict[str, ModelFigures]
    comparisons: list[ModelComparison]  # every two models, fine-tuned and base, on the questions that both answered
    truth: TruthFigures | None  # how far to trust the generated answers; None where nobody has an opinion
    parameters: Mapping[str, Mapping[str, Any]]  # model → its training settings and parameter counts
    definitions: dict[str, Definition]  # metric → its name and definition


@dataclass(frozen=True, slots=True)
class Table:
    """The answers of one model's variants to the questions that all of them answered, in one order."""

    examples: list[Example]
    answers: dict[str, list[Answered]]  # variant → one per example

    def right(self, variant: str) -> list[bool]:
        """Exact match after normalization, per question."""
        return [exact_match(p.truth, p.answer) > 0 for p in self.answers[variant]]


def join(test: Sequence[Example], variants: Mapping[str, Sequence[Answered]]) -> Table:
    """The questions that every variant answered, in the order of their ids.

    A prediction whose row is missing from ``test`` is kept; its example has only what the prediction says.
    """
    known = {e.id: e for e in test}
    by_id = {name: {p.id: p for p in predictions} for name, predictions in variants.items() if predictions}
    if not by_id:
        return Table([], {})
    shared = sorted(set.intersection(*(set(found) for found in by_id.values())))
    first = next(iter(by_id.values()))
    examples = [known.get(key) or _example_of(first[key]) for key in shared]
    return Table(examples, {name: [found[key] for key in shared] for name, found in by_id.items()})


def _example_of(p: Answered) -> Example:
    kind = question_type(p.question, p.truth)
    return Example(p.id, p.item_id, p.image_id, "", p.question, p.truth, "", kind, "")


def figures(inputs: ReportInputs) -> ReportFigures:
    """Compute everything."""
    models = {name: model_figures(inputs, name) for name in inputs.predictions}
    return ReportFigures(
        schema=SCHEMA,
        title=inputs.settings.title,
        warnings=notices(inputs, models),
        stand_in=inputs.stand_in,
        run=inputs.run,
        stages=inputs.stages,
        dataset=inputs.stats,
        models=models,
        comparisons=list(_comparisons(inputs.predictions)),
        truth=_truth(inputs),
        parameters=inputs.parameters,
        definitions=DEFINITIONS,
    )


def _truth(inputs: ReportInputs) -> TruthFigures | None:
    found = truth_figures(inputs)
    if found is None:
        return None
    for name, variants in inputs.predictions.items():
        table = join(inputs.test, variants)
        said = {
            v: [(e, p.answer) for e, p in zip(table.examples, given, strict=True)] for v, given in table.answers.items()
        }
        if said and (rows := parts(said, inputs.opinions, inputs.bert)):
            found.parts[name] = rows
    return found


def _comparisons(predictions: Mapping[str, Mapping[str, Sequence[Answered]]]) -> Iterator[ModelComparison]:
    for variant in ("lora", "base"):
        for first, second in itertools.combinations(predictions, 2):
            before, after = (predictions[name].get(variant, ()) for name in (first, second))
            if {p.id for p in before} & {p.id for p in after}:
                board = compare([Entry(first, variant, before), Entry(second, variant, after)])
                versus = next(standing.versus for standing in board.standings if standing.versus)
                yield ModelComparison(variant, (first, second), board.questions, versus.same_answer, versus.paired)


def notices(inputs: ReportInputs, models: Mapping[str, ModelFigures]) -> list[str]:
    """What a reader must know before any figure: stand-in questions, failures, gaps. A sentence each."""
    found = []
    if inputs.stand_in:
        found.append(
            "The questions and their true answers were not generated by Gemini: the stand-in server replayed them from a file. "
            "This run shows that the pipeline works, not how good Gemini's questions are."
        )
    found += inputs.warnings
    for name, reasons in inputs.failed.items():
        if total := sum(reasons.values()):
            found.append(f"{name}: {total:,} questions have no answer: {in_words(reasons)}. No figure counts them.")
    for name, model in models.items():
        if not model.variants:
            why = "no question was answered by every variant" if model.unshared else "no answers yet"
            found.append(f"{name}: {why}.")
            continue
        if model.unshared:
            found.append(f"{name}: {model.unshared:,} questions were not answered by every variant and are left out.")
        if "lora" not in model.variants:
            found.append(f"{name}: no fine-tuned answers, so there is no difference to report.")
        for metric, reason in model.gaps.items():
            found.append(f"{name}: no {DEFINITIONS[metric].label}: {reason}.")
        if model.verdict and (alarm := notice(name, model.verdict.spreads("lora"))):
            found.append(alarm)
    return list(dict.fromkeys(found))  # the stage evaluate raises the alarm of a collapse too


def model_figures(inputs: ReportInputs, name: str) -> ModelFigures:
    """Scores, paired difference, breakdowns and calibration of one model."""
    table = join(inputs.test, inputs.predictions[name])
    answered = {p.id for predictions in inputs.predictions[name].values() for p in predictions}
    products = [e.item_id for e in table.examples]
    unshared = len(answered) - len(products)
    if not products:
        return ModelFigures(0, 0, unshared)
    clusters = label_codes(products)
    right = {variant: np.array(table.right(variant), dtype=np.float64) for variant in table.answers}
    shown = dict(right)
    if inputs.train:
        guesses = blind_answers(inputs.train, table.examples)
        # Compared as the dataset card does: a guess is a training answer, spelled as curation spells the truths.
        shown["blind"] = np.array([float(e.answer == g) for e, g in zip(table.examples, guesses, strict=True)])
    variants: dict[str, VariantFigures] = {}
    gaps: dict[str, str] = {}
    for variant, predictions in table.answers.items():
        scores = score([(p.truth, p.answer) for p in predictions], clusters, inputs.bert)
        gaps |= scores.gaps
        variants[variant] = VariantFigures(
            metrics=scores.metrics,
            bertscore=scores.bertscore,
            empty_answers=scores.empty_answers,
            seconds=sum(p.seconds for p in predictions),
            calibration=_calibration(predictions, right[variant]),
            confusions=breakdowns.confusions(predictions),
            top_answers=Counter(normalize(p.answer) for p in predictions).most_common(5),
        )
    return ModelFigures(
        questions=len(products),
        products=len(set(products)),
        unshared=unshared,
        verdict=judge(name, _questions(table, shown, clusters, inputs.controls.get(name, {}))),
        variants=variants,
        gaps=gaps,
        paired=paired(right["base"], right["lora"], clusters) if {"base", "lora"} <= right.keys() else None,
        blind=interval(shown["blind"], clusters) if "blind" in shown else None,
        breakdowns=_breakdowns(inputs, table, shown, clusters),
        errors={variant: _errors(inputs.train, table, variant) for variant in table.answers},
    )


def _questions(
    table: Table, right: Mapping[str, np.ndarray], clusters: np.ndarray, controls: Mapping[str, Sequence[Answered]]
) -> Questions:
    """A table as what a verdict is made of. Answers of a control to questions that are not in the table are left out."""
    asked = {}
    for name, predictions in controls.items():
        by_id = {p.id: exact_match(p.truth, p.answer) for p in predictions}
        asked[name] = np.array([by_id.get(example.id, np.nan) for example in table.examples], dtype=np.float64)
    return Questions(
        types=[example.question_type for example in table.examples],
        truths=[example.answer for example in table.examples],
        clusters=clusters,
        answers={variant: [p.answer for p in predictions] for variant, predictions in table.answers.items()},
        right=right,
        controls=asked,
    )


def _calibration(predictions: Sequence[Answered], right: np.ndarray) -> Calibration | None:
    given = np.array([p.confidence is not None for p in predictions])
    if not given.any():
        return None
    confidence = np.array([p.confidence for p in predictions if p.confidence is not None], dtype=np.float64)
    return calibration(np.clip(confidence, 0.0, 1.0), right[given])


def _breakdowns(
    inputs: ReportInputs, table: Table, right: Mapping[str, np.ndarray], clusters: np.ndarray
) -> dict[str, list[Group]]:
    groups: dict[str, list[str]] = {
        "category": [e.category for e in table.examples],
        "question type": [e.question_type for e in table.examples],
        "product type": [e.product_type for e in table.examples],
    }
    if len({e.model_version for e in table.examples}) > 1:
        groups["generator model"] = [e.model_version or "not stated" for e in table.examples]
    for name, label in truth.LABELS.items():
        said = [str(getattr(inputs.opinions.get(e.id, UNKNOWN), name)) for e in table.examples]
        if len(set(said)) > 1:
            groups[label] = said
    if inputs.train:
        trained = Counter(normalize(e.answer) for e in inputs.train)
        groups["answer frequency"] = [breakdowns.frequency_class(e.answer, trained) for e in table.examples]
    return {name: breakdowns.by_group(labels, right, clusters) for name, labels in groups.items() if any(labels)}


def _errors(train: Sequence[Example], table: Table, variant: str) -> list[ErrorCount]:
    known = breakdowns.training_answers(train)
    kinds: Counter[str] = Counter()
    for example, p, good in zip(table.examples, table.answers[variant], table.right(variant), strict=True):
        if not good:
            seen = known.get((example.product_type, question_pattern(example.question)))
            kinds[breakdowns.error_kind(p.truth, p.answer, seen)] += 1
    return [ErrorCount(kind, kinds[kind], text) for kind, text in breakdowns.ERROR_KINDS.items()]
