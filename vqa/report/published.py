"""Figures that others published, next to this run's. Each was measured on its own private data: none is comparable.

Nothing here is estimated: a figure that was not published is shown as "not published".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vqa.evaluation.statistics import Interval
from vqa.report.browser import LABELS
from vqa.report.figures import ReportFigures

NAMES = {"blip": "BLIP", "vilt": "ViLT"}
UNPUBLISHED = "not published"

_REPORT = "the student report that this project starts from, on its own private split"
_PREDICTIONS = "published with 10,000 predictions per model on ABO questions, on its own private split"
_SCORES = (  # model, variant, strict exact match, substring match, source
    ("blip", "base", "0.31", UNPUBLISHED, _REPORT),
    ("blip", "lora", "0.70", UNPUBLISHED, _REPORT),
    ("blip", "base", "0.3610", "0.3787", _PREDICTIONS),
    ("blip", "lora", "0.6928", "0.7065", _PREDICTIONS),
    ("vilt", "base", "0.2487", "0.2551", _PREDICTIONS),
    ("vilt", "lora", "0.2809", "0.2848", _PREDICTIONS),
)
# Tables 3, 4 and 8 of the student report, by the name of the value in a model's parameters. abo.yaml must say the same.
_SHARED: dict[str, float] = {
    "lora.r": 16,
    "lora.alpha": 32,
    "lora.dropout": 0.1,
    "training.learning_rate": 5e-5,
    "training.weight_decay": 0.01,
    "training.epochs": 3,
    "training.eval_steps": 500,
}
HYPERPARAMETERS: dict[str, dict[str, float]] = {
    "blip": {**_SHARED, "effective_batch": 16},  # 4 x 4
    "vilt": {**_SHARED, "effective_batch": 16},  # 8 x 2
}
_LABELS = {
    "lora.r": "LoRA rank r",
    "lora.alpha": "LoRA alpha",
    "lora.dropout": "LoRA dropout",
    "training.learning_rate": "learning rate",
    "training.weight_decay": "weight decay",
    "training.epochs": "epochs",
    "training.eval_steps": "steps between validations",
    "effective_batch": "questions per optimizer step",
}


def _of_both(key: str) -> str:
    """A published value, of each model where they differ."""
    values = {NAMES[kind]: f"{table[key]:g}" for kind, table in HYPERPARAMETERS.items()}
    if len(set(values.values())) == 1:
        return values["BLIP"]
    return "; ".join(f"{name} {value}" for name, value in values.items())


# label, published value, where the value is in a model's parameters
_SETTINGS = (
    *((label, _of_both(key), key) for key, label in _LABELS.items()),
    ("parameters", "BLIP 385 M; ViLT 198 M", "total"),
    ("trainable parameters", f"BLIP 1.2 M; ViLT {UNPUBLISHED}", "trainable"),
)
NOTES = (
    "BLIP: 1.2 M trainable parameters is the count of r = 8; r = 16 on query and value has 2.36 M.",
    "ViLT: ViLT-B/32 for VQA has 117.6 M parameters when counted.",
)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of the table of published scores."""

    model: str
    exact: str  # strict exact match
    substring: str
    source: str
    ours: bool


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A training setting as published, and as each model of this run has it."""

    label: str
    published: str
    ours: list[str]


def score_rows(figures: ReportFigures) -> list[ScoreRow]:
    """This run's scores and the published ones."""
    source = "this run (stand-in questions)" if figures.stand_in else "this run"
    rows = []
    for name, model in figures.models.items():
        for variant, found in model.variants.items():
            exact, substring = (_mean(found.metrics[m]) for m in ("strict_exact_match", "substring_match"))
            rows.append(ScoreRow(f"{name}, {LABELS.get(variant, variant)}", exact, substring, source, ours=True))
    for kind, variant, exact, substring, published in _SCORES:
        rows.append(ScoreRow(f"{NAMES[kind]}, {LABELS[variant]}", exact, substring, published, ours=False))
    return rows


def setting_rows(parameters: Mapping[str, Mapping[str, Any]]) -> list[SettingRow]:
    """Published training settings and this run's, a value per trained model."""
    flat = [dict(flatten(values)) for values in parameters.values()]
    return [
        SettingRow(label, published, [_grouped(values.get(key, "not recorded")) for values in flat])
        for label, published, key in _SETTINGS
    ]


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"a": {"b": 1}}`` as ``("a.b", "1")``; a list of plain values is one line."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and any(isinstance(x, (Mapping, list)) for x in tree):
        for i, value in enumerate(tree):
            yield from flatten(value, f"{prefix}.{i}")
    else:
        yield prefix, ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)


def _mean(value: Interval | float) -> str:
    return f"{value.mean if isinstance(value, Interval) else value:.4f}"


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdecimal() else value
