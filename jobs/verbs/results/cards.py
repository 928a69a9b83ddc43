"""What the cards of an exported dataset and model say about checks and scores: sections in Markdown, from the report's figures."""

from __future__ import annotations

from vqa.evaluation.metrics import DEFINITIONS
from vqa.evaluation.statistics import Interval
from vqa.report.figures import ReportFigures
from vqa.report.truth import LABELS, TruthFigures

METRICS = ("exact_match", "token_f1", "macro_f1")


def trust_section(truth: TruthFigures | None) -> str:
    """How far the generated answers can be trusted; "" where nobody checked them.

    Args:
        truth: of the test questions.
    """
    if truth is None:
        return ""
    lines = []
    for kind, counts in truth.opinions.items():
        said = ", ".join(f"{word} {count:,}" for word, count in counts.items())
        lines.append(f"- {LABELS[kind][0].upper()}{LABELS[kind][1:]}: {said} (test questions).")
    if (twice := truth.self_consistency) and "agreement" in twice:
        lines.append(
            f"- Asked again, the teacher gave the same answer to {100 * twice['agreement']:.0f}% of the questions."
        )
    if audit := truth.audit:
        lines.append(
            f"- People judged {audit.judged:,} test questions: {_percent(audit.error)} of the generated answers are not right "
            "(95% interval, for the whole test split)."
        )
    return "\n".join(lines)


def results_section(told: ReportFigures, model: str) -> str:
    """How good a model is on the test split, with the verdict."""
    found = told.models.get(model)
    if found is None or found.verdict is None:
        return "## Results\n\nIt has not been evaluated on the test split.\n"
    names = [name for name in METRICS if all(name in variant.metrics for variant in found.variants.values())]
    lines = [
        "## Results",
        "",
        f"**{found.verdict.headline}**",
        "",
        f"On {found.questions:,} test questions about {found.products:,} products whose images occur in no other split"
        + (f"; a guesser who sees no image reaches {_percent(found.blind)} exact match." if found.blind else "."),
        "",
        f"| | {' | '.join(DEFINITIONS[name].label for name in names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for variant, scores in found.variants.items():
        cells = [_value(scores.metrics[name]) for name in names]
        lines.append(f"| {'base' if variant == 'base' else 'fine-tuned'} | {' | '.join(cells)} |")
    if told.stand_in:
        lines += ["", "The questions and answers came from a stand-in: these figures say nothing about real products."]
    if trust := trust_section(told.truth):
        lines += ["", "The answers that it is scored against are generated:", "", trust]
    return "\n".join(lines) + "\n"


def _value(value: Interval | float) -> str:
    if not isinstance(value, Interval):
        return f"{value:.3f}"
    return f"{value.mean:.3f}" + (f" ({value.low:.3f} to {value.high:.3f})" if _has_range(value) else "")


def _percent(value: Interval) -> str:
    if not _has_range(value):
        return f"{100 * value.mean:.1f}%"
    return f"{100 * value.mean:.1f}% ({100 * (value.low or 0):.1f} to {100 * (value.high or 0):.1f})"


def _has_range(value: Interval) -> bool:
    """Whether there is an interval, which there is not for a single product."""
    return value.low is not None and value.high is not None
