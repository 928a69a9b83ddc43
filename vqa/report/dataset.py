"""The dataset as the page draws it: bars of its answers, types and splits, and a funnel of what was dropped at each step.

>>> funnel({"products": {"kept": 1200}}, [StageSummary("prepare", {"listings": 1360, "products": 1260})])[1]
Step(label='products', count=1260, width=92.6, lost=100, reasons='')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.reasons import in_words
from vqa.report.inputs import StageSummary


@dataclass(frozen=True, slots=True)
class CountBar:
    """One bar of a chart."""

    label: str
    count: int
    width: float  # percent of the longest bar of the chart
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarChart:
    """Counts as horizontal bars."""

    title: str
    unit: str
    bars: list[CountBar]
    filter: str  # of the browser of answers, which takes the bars' labels; "" for none


@dataclass(frozen=True, slots=True)
class Step:
    """What is left after one step of the pipeline. Products and questions each have a scale of their own."""

    label: str
    count: int
    width: float  # percent of the first step with the same unit
    lost: int  # since the step before
    reasons: str  # why, in words


def funnel(stats: Mapping[str, Any], stages: Sequence[StageSummary]) -> list[Step]:
    """Listings → products → images → replies → products in the dataset, then pairs → questions."""
    by_name = {stage.name: stage for stage in stages}
    products, pairs = _mapping(stats.get("products")), _mapping(stats.get("pairs"))
    splits = [_count(_mapping(size).get("questions")) for size in _mapping(stats.get("splits")).values()]
    counts: list[tuple[str, str, object, Mapping[str, int]]] = []  # unit, label, count, reasons for those lost
    seen: set[str] = set()  # curation counts the failures of earlier stages once more
    for name, key, label in (
        ("prepare", "listings", "listings"),
        ("prepare", "products", "products"),
        ("validate", "done", "products with an image that decodes"),
        ("generate", "done", "products with a reply"),
    ):
        if stage := by_name.get(name):
            reasons = {} if key == "listings" else stage.reasons
            counts.append(("products", label, stage.counts.get(key), reasons))
            seen |= reasons.keys()
    dropped = {reason: n for reason, n in _mapping(products.get("dropped")).items() if reason not in seen}
    counts.append(("products", "products in the dataset", products.get("kept"), dropped))
    counts.append(("questions", "question/answer pairs", pairs.get("read"), {}))
    counts.append(("questions", "pairs that meet the rules", pairs.get("kept"), _mapping(pairs.get("dropped"))))
    counts.append(("questions", "questions in the splits", sum(splits) if splits else None, {}))
    steps: list[Step] = []
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for unit, label, value, reasons in counts:
        if isinstance(value, int):
            lost = max(0, last.get(unit, value) - value)
            width = _percent(value, first.setdefault(unit, value))
            steps.append(Step(label, value, width, lost, in_words(reasons) if lost else ""))
            last[unit] = value
    return steps


def bar_charts(stats: Mapping[str, Any]) -> list[BarChart]:
    """The distributions that curation counted."""
    answers = _mapping(stats.get("answers")).get("most_frequent")
    pairs = [pair for pair in answers if len(pair) == 2] if isinstance(answers, list | tuple) else []
    product_types = {
        kind: sum(map(_count, _mapping(by_split).values()))
        for kind, by_split in _mapping(stats.get("product_types")).items()
    }
    charts = [
        _chart("Splits", "questions", "", _field(stats, "splits", "questions"), _split_notes(stats)),
        _chart("Categories", "questions", "category", _field(stats, "categories", "questions")),
        _chart(
            "Question types", "questions", "qtype", _field(stats, "question_types", "questions"), _answers_of(stats)
        ),
        _chart("Product types", "products", "ptype", dict(list(product_types.items())[:15])),
        _chart("Most frequent answers", "questions", "truth", {str(word): _count(n) for word, n in pairs[:15]}),
    ]
    return [chart for chart in charts if chart.bars]


def facts(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Single figures, with what they mean."""
    answers, yes_no = _mapping(stats.get("answers")), _mapping(stats.get("yes_no"))
    floor = _mapping(stats.get("blind_floor"))
    found = (
        ("different answers", answers.get("distinct")),
        ("answers that occur once", answers.get("seen_once")),
        ("test questions whose answer is not in training", _share(answers.get("test_answers_unseen_in_training"))),
        ("yes/no questions", _share(yes_no.get("share"))),
        ("of which answered by yes", _share(yes_no.get("yes_of_yes_no"))),
        ("blind floor, all test questions", _share(floor.get("exact_match"))),
    )
    return [(label, f"{v:,}" if isinstance(v, int) else str(v)) for label, v in found if v not in (None, "")]


def _chart(
    title: str, unit: str, filter_name: str, counts: Mapping[str, int], notes: Mapping[str, str] | None = None
) -> BarChart:
    most = max(counts.values(), default=0)
    bars = [CountBar(k, n, _percent(n, most), (notes or {}).get(k, "")) for k, n in counts.items()]
    return BarChart(title, unit, bars, filter_name)


def _field(stats: Mapping[str, Any], name: str, key: str) -> dict[str, int]:
    return {str(k): _count(_mapping(row).get(key)) for k, row in _mapping(stats.get(name)).items()}


def _split_notes(stats: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{n:,} products" for name, n in _field(stats, "splits", "products").items() if n}


def _answers_of(stats: Mapping[str, Any]) -> dict[str, str]:
    """The most frequent answers of each question type."""
    found = {}
    for kind, row in _mapping(stats.get("question_types")).items():
        most = _mapping(row).get("most_frequent")
        if isinstance(most, list | tuple):
            found[kind] = ", ".join(str(pair[0]) for pair in most[:3])
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _share(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else ""


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
