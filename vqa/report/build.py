"""Builds the page and report.json from `ReportInputs`.

Values from data reach the page only through autoescaping templates, or as JSON whose markup characters are escaped. The
page's content security policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from data_prep.files import write_atomic, write_json
from data_prep.reasons import in_words
from vqa.evaluation.metrics import exact_match
from vqa.evaluation.statistics import RESAMPLES
from vqa.evaluation.verdict import LEARNED, WORSE
from vqa.report import dataset
from vqa.report.browser import LABELS, browser_data, link, script_json
from vqa.report.charts import reliability, training_charts
from vqa.report.figures import ReportFigures, Table, figures, join
from vqa.report.images import data_uri, link_prefix, thumbnails
from vqa.report.inputs import ReportInputs
from vqa.report.page import TEMPLATES, page_environment
from vqa.report.published import NOTES, flatten, score_rows, setting_rows
from vqa.report.truth import LABELS as OPINION_LABELS

CONTENTS = (
    ("types", "By question type"),
    ("examples", "Fixed and broken"),
    ("compared", "Models compared"),
    ("scores", "Metrics"),
    ("truth", "Trust"),
    ("breakdowns", "Right answers"),
    ("errors", "Wrong answers"),
    ("browser", "All answers"),
    ("training", "Training"),
    ("calibration", "Calibration"),
    ("dataset", "Dataset"),
    ("run", "Cost and run"),
    ("published", "Published figures"),
    ("definitions", "Definitions"),
)
# The stylesheet's class of each verdict; the others stay gray.
TONES = {LEARNED: "up", WORSE: "down"}
CONFUSIONS = 12  # shown per model, with up to three images each


@dataclass(frozen=True, slots=True)
class Card:
    """One question with its image and everybody's answers."""

    image: str | None  # data URI
    name: str
    question: str
    truth: str
    answers: list[tuple[str, str, bool]]  # variant, answer, whether it is right


@dataclass(frozen=True, slots=True)
class Drawn:
    """The questions and images that the page shows."""

    tables: Mapping[str, Table]  # by model
    chosen: Mapping[str, Mapping[str, list[int]]]  # model → "fixed by fine-tuning" → rows of its table
    embedded: Mapping[str, str]  # image path → data URI


def build(inputs: ReportInputs, out: Path) -> ReportFigures:
    """Write ``out/index.html``, ``out/report.json`` and ``out/thumbnails.json``; returns what report.json holds.

    >>> build(ReportInputs(predictions={"blip": {"base": [...], "lora": [...]}}, test=[...]), Path("8_report"))
    ReportFigures(...)

    Whatever is missing in the inputs becomes a labeled gap of the page.
    """
    result = figures(inputs)
    tables = {name: join(inputs.test, variants) for name, variants in inputs.predictions.items()}
    chosen = {
        name: _chosen(t, inputs.settings.examples) for name, t in tables.items() if {"base", "lora"} <= t.answers.keys()
    }
    embedded = thumbnails(
        _paths_by_need(tables, chosen, result),
        inputs.image_root,
        inputs.thumbnails,
        most=inputs.settings.thumbnails,
        side=inputs.settings.thumbnail_side,
    )
    write_json(out / "thumbnails.json", embedded)
    write_json(out / "report.json", result)  # not-a-number becomes null
    page = out / "index.html"
    write_atomic(page, render(inputs, result, Drawn(tables, chosen, embedded), page).encode("utf-8", "replace"))
    return result


def render(inputs: ReportInputs, result: ReportFigures, drawn: Drawn, page: Path) -> str:
    """The page as text; ``page`` is where it will lie, for links to images."""
    tables, chosen, embedded = drawn.tables, drawn.chosen, drawn.embedded
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    sheet = inputs.sample_sheet
    environment = page_environment()
    environment.globals.update(
        dataset=dataset,
        opinion_labels=OPINION_LABELS,
        link=link,
        in_words=in_words,
        labels=LABELS,
        confusions_shown=CONFUSIONS,
        tones=TONES,
    )
    return environment.get_template("report.html").render(
        f=result,
        script=Markup(script),
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        data=script_json(browser_data(tables, inputs.opinions, embedded, link_prefix(inputs.image_root, page))),
        contents=CONTENTS,
        facts=_facts(inputs, result),
        examples={
            name: {title: [_card(tables[name], i, embedded) for i in found] for title, found in kinds.items()}
            for name, kinds in chosen.items()
        },
        published=score_rows(result),
        settings=setting_rows(inputs.parameters),
        published_notes=NOTES,
        images={e.id: embedded[e.image_path] for t in tables.values() for e in t.examples if e.image_path in embedded},
        reliability=reliability,
        training={name: training_charts(log) for name, log in inputs.training_log.items()},
        asked=_asked(next(iter(tables.values()), None)),
        browsable=any(t.examples for t in tables.values()),
        sheet=data_uri(sheet.parent, sheet.name, 1360) if sheet is not None else None,
        run_rows=list(flatten(inputs.run)),
        resamples=RESAMPLES,
    )


def _asked(table: Table | None) -> dict[str, set[str]]:
    """By filter of the browser, the values that some of its questions have."""
    examples = table.examples if table else []
    return {
        "category": {e.category for e in examples},
        "qtype": {e.question_type for e in examples},
        "ptype": {e.product_type for e in examples},
        "truth": {e.answer for e in examples},
    }


def _chosen(table: Table, most: int) -> dict[str, list[int]]:
    """Indices of questions that fine-tuning fixed and broke: one per product, spread evenly over all of them."""
    before, after = table.right("base"), table.right("lora")
    kinds = {"fixed by fine-tuning": (False, True), "broken by fine-tuning": (True, False)}
    chosen = {}
    for title, kind in kinds.items():
        one_each: dict[str, int] = {}
        for i, right in enumerate(zip(before, after, strict=True)):
            if right == kind:
                one_each.setdefault(table.examples[i].item_id, i)
        found = list(one_each.values())
        step = max(1, len(found) // most) if most else 1
        chosen[title] = found[::step][:most]
    return chosen


def _paths_by_need(
    tables: Mapping[str, Table], chosen: Mapping[str, Mapping[str, list[int]]], result: ReportFigures
) -> Iterator[str]:
    """Image paths. Those shown outside of the browser come first, since only a bounded number is embedded."""
    for name, kinds in chosen.items():
        for found in kinds.values():
            yield from (tables[name].examples[i].image_path for i in found)
    for name, table in tables.items():
        variants = result.models[name].variants.values()
        ids = {key for variant in variants for c in variant.confusions[:CONFUSIONS] for key in c.examples}
        yield from (e.image_path for e in table.examples if e.id in ids)
    for table in tables.values():
        yield from (e.image_path for e in table.examples)


def _card(table: Table, index: int, embedded: Mapping[str, str]) -> Card:
    e = table.examples[index]
    said = {variant: predictions[index] for variant, predictions in table.answers.items()}
    answers = [(LABELS.get(v, v), p.answer, exact_match(p.truth, p.answer) > 0) for v, p in said.items()]
    return Card(embedded.get(e.image_path), e.product_type, e.question, e.answer, answers)


def _facts(inputs: ReportInputs, result: ReportFigures) -> list[str]:
    """The line under the title."""
    facts = [f"{name}: {m.questions:,} questions, {m.products:,} products" for name, m in result.models.items()]
    seconds = sum(stage.seconds or 0.0 for stage in inputs.stages)
    if seconds:
        facts.append(f"{seconds / 3600:.1f} h of work" if seconds > 5400 else f"{seconds / 60:.1f} min of work")
    dollars = [stage.dollars for stage in inputs.stages if stage.dollars is not None]
    if dollars:
        facts.append(f"${sum(dollars):.2f} for questions")
    launches = inputs.run.get("launches")
    if launches and launches[-1].get("commit"):
        facts.append(f"commit {launches[-1]['commit'][:12]}")
    return facts
