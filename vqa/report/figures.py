"""Every figure of the report, computed from the predictions: what report.json holds and what the page shows.

>>> figures(inputs)["models"]["blip"]["paired"]["difference"]
{'mean': 0.31, 'low': 0.27, 'high': 0.35, 'questions': 1460, 'clusters': 292}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_prep.records import Example, Prediction
from vqa.evaluation import breakdowns, statistics
from vqa.evaluation.metrics import DEFINITIONS, NAMES, class_f1, exact_match, per_answer
from vqa.normalize import normalize
from vqa.report.inputs import ReportInputs

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Table:
    """The answers of one model's variants to the questions that all of them answered, in one order."""

    examples: list[Example]
    answers: dict[str, list[Prediction]]  # variant → one an example

    def right(self, variant: str) -> list[bool]:
        """Exact match after normalization, per question."""
        return [exact_match(p.truth, p.answer) > 0 for p in self.answers[variant]]

    def right_at(self, variant: str, index: int) -> bool:
        """The same for one question."""
        p = self.answers[variant][index]
        return exact_match(p.truth, p.answer) > 0


def join(test: Sequence[Example], variants: Mapping[str, Sequence[Prediction]]) -> Table:
    """The questions that every variant answered, with the rows that describe them.

    A prediction whose row is missing from ``test`` is described by itself alone, never dropped.
    """
    known = {e.id: e for e in test}
    by_id = {name: {p.id: p for p in predictions} for name, predictions in variants.items() if predictions}
    if not by_id:
        return Table([], {})
    shared = sorted(set.intersection(*(set(found) for found in by_id.values())))
    first = next(iter(by_id.values()))
    examples = [known.get(key) or _example_of(first[key]) for key in shared]
    return Table(examples, {name: [found[key] for key in shared] for name, found in by_id.items()})


def _example_of(p: Prediction) -> Example:
    return Example(p.id, p.item_id, p.image_id, "", p.question, p.truth, "", "", "")


def figures(inputs: ReportInputs) -> dict[str, Any]:
    """Everything that is measured; plain JSON values."""
    models = {name: model_figures(inputs, name) for name in inputs.predictions}
    return {
        "schema": SCHEMA,
        "title": inputs.settings.title,
        "warnings": notices(inputs, models),
        "stand_in": inputs.stand_in,
        "run": dict(inputs.run),
        "stages": [asdict(stage) for stage in inputs.stages],
        "dataset": dict(inputs.stats),
        "models": models,
        "parameters": {name: dict(values) for name, values in inputs.parameters.items()},
        "definitions": {name: {"label": NAMES[name], "text": text} for name, text in DEFINITIONS.items()},
    }


def notices(inputs: ReportInputs, models: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any figure: stand-in, failures, gaps."""
    found = []
    if inputs.stand_in:
        found.append(
            "The questions and their true answers came from the stand-in server, which replays a file, not from Gemini: this "
            "run shows that the pipeline works, not how good Gemini's questions are."
        )
    found += inputs.warnings
    for name, reasons in inputs.failed.items():
        if total := sum(reasons.values()):
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
            found.append(f"{name}: {total:,} questions have no answer ({why}); they are in no figure.")
    for name, model in models.items():
        if not model["variants"]:
            why = "no question was answered by every variant" if model["unshared"] else "no answers yet"
            found.append(f"{name}: {why}.")
            continue
        if model["unshared"]:
            found.append(
                f"{name}: {model['unshared']:,} questions were not answered by every variant and are left out."
            )
        if "lora" not in model["variants"]:
            found.append(f"{name}: no fine-tuned answers, so there is no difference to report.")
        for metric, reason in model["gaps"].items():
            found.append(f"{name}: no {NAMES[metric]}: {reason}.")
    return found


def model_figures(inputs: ReportInputs, name: str) -> dict[str, Any]:
    """Scores, paired difference, breakdowns and calibration of one model."""
    table = join(inputs.test, inputs.predictions[name])
    everything = {p.id for predictions in inputs.predictions[name].values() for p in predictions}
    result: dict[str, Any] = {
        "questions": len(table.examples),
        "products": len({e.item_id for e in table.examples}),
        "unshared": len(everything) - len(table.examples),
        "variants": {},
        "gaps": {},
        "paired": None,
        "blind": None,
    }
    if not table.examples:
        return result
    clusters = statistics.codes([e.item_id for e in table.examples])
    right: dict[str, np.ndarray] = {}
    for variant, predictions in table.answers.items():
        pairs = [(p.truth, p.answer) for p in predictions]
        answers = per_answer(pairs, inputs.metrics)
        right[variant] = answers.values["exact_match"]
        result["gaps"].update(answers.gaps)
        result["variants"][variant] = {
            "metrics": {m: asdict(statistics.interval(v, clusters)) for m, v in answers.values.items()}
            | class_f1(pairs),
            "bertscore": answers.bertscore,
            "empty_answers": sum(not p.answer.strip() for p in predictions),
            "seconds": sum(p.seconds for p in predictions),
            "calibration": _calibration(predictions, right[variant]),
            "confusions": breakdowns.confusions(predictions),
            "top_answers": [list(item) for item in Counter(normalize(p.answer) for p in predictions).most_common(5)],
        }
    if "base" in right and "lora" in right:
        result["paired"] = statistics.paired(right["base"], right["lora"], clusters)
    shown = dict(right)
    if inputs.train:
        blind = _blind(inputs.train, table.examples)
        result["blind"] = asdict(statistics.interval(blind, clusters))
        shown["blind"] = blind
    result["breakdowns"] = _breakdowns(inputs, table, shown, clusters)
    result["errors"] = {v: _errors(inputs.train, table, v) for v in table.answers}
    return result


def _blind(train: Sequence[Example], examples: Sequence[Example]) -> np.ndarray:
    guesses = breakdowns.blind_answers([(e.question, e.answer) for e in train], [e.question for e in examples])
    pairs = zip(examples, guesses, strict=True)
    return np.array([float(normalize(e.answer) == normalize(guess)) for e, guess in pairs])


def _calibration(predictions: Sequence[Prediction], right: np.ndarray) -> dict[str, Any] | None:
    given = np.array([p.confidence is not None for p in predictions])
    if not given.any():
        return None
    confidence = np.array([p.confidence for p in predictions if p.confidence is not None], dtype=np.float64)
    return statistics.calibration(np.clip(confidence, 0.0, 1.0), right[given])


def _breakdowns(
    inputs: ReportInputs, table: Table, right: Mapping[str, np.ndarray], clusters: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[str]] = {
        "category": [e.category for e in table.examples],
        "question type": [e.question_type for e in table.examples],
        "product type": [e.product_type for e in table.examples],
    }
    if inputs.train:
        trained = Counter(normalize(e.answer) for e in inputs.train)
        groups["answer frequency"] = [breakdowns.frequency_class(e.answer, trained) for e in table.examples]
    return {name: breakdowns.by_group(labels, right, clusters) for name, labels in groups.items() if any(labels)}


def _errors(train: Sequence[Example], table: Table, variant: str) -> list[dict[str, Any]]:
    known = breakdowns.training_answers(train)
    kinds: Counter[str] = Counter()
    rows = zip(table.examples, table.answers[variant], table.right(variant), strict=True)
    for example, p, good in rows:
        if not good:
            seen = known.get((example.product_type, breakdowns.pattern(example.question)))
            kinds[breakdowns.error_kind(p.truth, p.answer, seen)] += 1
    return [{"kind": k, "questions": kinds[k], "definition": text} for k, text in breakdowns.ERROR_KINDS.items()]
