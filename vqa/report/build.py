"""Builds the page and report.json from `ReportInputs`.

Values from data reach the page only through autoescaping templates, or as JSON whose markup characters are escaped; the
page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from data_prep.files import write_atomic, write_json
from vqa.evaluation.statistics import FEW, RESAMPLES
from vqa.report import published
from vqa.report.browser import LABELS, browser_data, script_json
from vqa.report.charts import reliability, training_charts
from vqa.report.figures import Table, figures, join
from vqa.report.images import link_prefix, sheet_uri, thumbnails
from vqa.report.inputs import ReportInputs

TEMPLATES = Path(__file__).parent / "templates"
CONTENTS = (
    ("examples", "Fixed and broken"),
    ("scores", "Metrics"),
    ("published", "Published figures"),
    ("breakdowns", "Where right"),
    ("errors", "Where wrong"),
    ("calibration", "Calibration"),
    ("training", "Training"),
    ("browser", "All answers"),
    ("dataset", "Dataset"),
    ("run", "The run"),
    ("definitions", "Definitions"),
)
# How a setting is called in the published table, and the names it may have in parameters.json.
SETTINGS = {
    "LoRA rank r": ("r", "rank", "lora_r"),
    "LoRA alpha": ("alpha", "lora_alpha"),
    "LoRA dropout": ("dropout", "lora_dropout"),
    "learning rate": ("learning_rate", "lr"),
    "weight decay": ("weight_decay",),
    "epochs": ("epochs", "num_train_epochs"),
}


def build(inputs: ReportInputs, out: Path) -> dict[str, Any]:
    """Write ``out/index.html`` and ``out/report.json``; returns what report.json holds.

    Whatever is missing in the inputs becomes a labeled gap of the page.
    """
    result = figures(inputs)
    write_json(out / "report.json", _finite(result))
    write_atomic(out / "index.html", render(inputs, result, out / "index.html").encode("utf-8", "replace"))
    return result


def render(inputs: ReportInputs, result: Mapping[str, Any], page: Path) -> str:
    """The page as text; ``page`` is where it will lie, for links to images."""
    tables = {name: join(inputs.test, variants) for name, variants in inputs.predictions.items()}
    chosen = {
        name: _chosen(table, inputs.settings.examples) for name, table in tables.items() if len(table.answers) > 1
    }
    pictures = thumbnails(
        _paths_by_need(tables, chosen, result),
        inputs.image_root,
        most=inputs.settings.thumbnails,
        side=inputs.settings.thumbnail_side,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["few"] = FEW
    models = {name: _for_page(model) for name, model in result["models"].items()}
    by_id = {e.id: pictures[e.image_path] for t in tables.values() for e in t.examples if e.image_path in pictures}
    names, rows, notes = _parameters(inputs)
    return environment.get_template("report.html").render(
        f={**result, "models": models},
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=Markup(digest),
        data=script_json(browser_data(tables, pictures, link_prefix(inputs.image_root, page))),
        contents=CONTENTS,
        labels=LABELS,
        facts=_facts(inputs, result),
        examples={
            name: {title: [_card(table, i, pictures) for i in found] for title, found in kinds.items()}
            for name, (table, kinds) in ((n, (tables[n], k)) for n, k in chosen.items())
        },
        published=_published(inputs, result),
        parameter_names=names,
        hyperparameters=rows,
        parameter_notes=notes,
        images=by_id,
        reliability=reliability,
        training={name: training_charts(log) for name, log in inputs.training_log.items()},
        browsable=any(t.examples for t in tables.values()),
        sheet=sheet_uri(inputs.sample_sheet),
        run_rows=list(flatten(inputs.run)),
        resamples=f"{RESAMPLES:,}",
        credit="",
    )


def _chosen(table: Table, most: int) -> dict[str, list[int]]:
    """Indices of questions that fine-tuning fixed and broke, one a product, spread evenly over all of them."""
    if not {"base", "lora"} <= table.answers.keys():
        return {}
    before, after = table.right("base"), table.right("lora")
    kinds = {"fixed by fine-tuning": (False, True), "broken by fine-tuning": (True, False)}
    chosen = {}
    for title, (was, now) in kinds.items():
        one_each: dict[str, int] = {}
        for i, (b, a) in enumerate(zip(before, after, strict=True)):
            if (b, a) == (was, now):
                one_each.setdefault(table.examples[i].item_id, i)
        found = list(one_each.values())
        step = max(1, len(found) // most) if most else 1
        chosen[title] = found[::step][:most]
    return chosen


def _paths_by_need(
    tables: Mapping[str, Table], chosen: Mapping[str, Mapping[str, list[int]]], result: Mapping[str, Any]
) -> Iterator[str]:
    """Image paths, those that the page shows outside of the browser first."""
    for name, kinds in chosen.items():
        for found in kinds.values():
            yield from (tables[name].examples[i].image_path for i in found)
    for name, table in tables.items():
        ids = {
            key
            for variant in result["models"][name]["variants"].values()
            for c in variant["confusions"][:12]
            for key in c["examples"]
        }
        yield from (e.image_path for e in table.examples if e.id in ids)
    for table in tables.values():
        yield from (e.image_path for e in table.examples)


def _card(table: Table, index: int, pictures: Mapping[str, str]) -> dict[str, Any]:
    e = table.examples[index]
    answers = [
        {"label": LABELS.get(v, v), "answer": predictions[index].answer, "right": table.right_at(v, index)}
        for v, predictions in table.answers.items()
    ]
    return {
        "image": pictures.get(e.image_path),
        "name": e.product_type,
        "question": e.question,
        "truth": e.answer,
        "answers": answers,
    }


def _for_page(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's figures with the few words and rows that the template would otherwise have to work out."""
    page: dict[str, Any] = {"breakdowns": {}, "errors": {}, **model, "p": "", "verdict": ("open", ""), "last": ""}
    if model["variants"]:
        page["last"] = list(model["variants"])[-1]
        errors = list(page["errors"].values())
        page["error_rows"] = [
            {**row, "counts": [rows[i]["questions"] for rows in errors]} for i, row in enumerate(errors[0])
        ]
    if paired := model["paired"]:
        p, difference = paired["mcnemar"]["p"], paired["difference"]
        page["p"] = "< 0.0001" if p < 1e-4 else f"= {p:.4f}"
        if difference["low"] is None:
            page["verdict"] = ("open", "All questions are about one product: that says nothing about others.")
        elif difference["low"] > 0:
            page["verdict"] = ("up", "Fine-tuning helps: the interval lies above zero.")
        elif difference["high"] < 0:
            page["verdict"] = ("down", "Fine-tuning hurts: the interval lies below zero.")
        else:
            page["verdict"] = ("open", "The interval holds zero: this test set does not show a difference.")
        after, blind = paired["after"]["mean"], model["blind"]
        if blind and after < blind["mean"]:
            page["verdict"] = (
                "open",
                f"{page['verdict'][1]} But the blind floor is higher: the most frequent answer to each kind of question, "
                "without a look at the image, is right more often than the fine-tuned model.",
            )
    return page


def _facts(inputs: ReportInputs, result: Mapping[str, Any]) -> list[str]:
    """The line under the title."""
    facts = [
        f"{name}: {m['questions']:,} questions, {m['products']:,} products" for name, m in result["models"].items()
    ]
    seconds = sum(stage.seconds or 0.0 for stage in inputs.stages)
    if seconds:
        facts.append(f"{seconds / 3600:.1f} h of work" if seconds > 5400 else f"{seconds / 60:.1f} min of work")
    dollars = [stage.dollars for stage in inputs.stages if stage.dollars is not None]
    if dollars:
        facts.append(f"${sum(dollars):.2f} for questions")
    hours = [stage.gpu_hours for stage in inputs.stages if stage.gpu_hours is not None]
    if hours:
        facts.append(f"{sum(hours):.2f} GPU hours")
    commit = next((v for k, v in flatten(inputs.run) if k.split(".")[-1] in {"commit", "git_commit"} and v), None)
    if commit:
        facts.append(f"commit {commit[:12]}")
    return facts


def _published(inputs: ReportInputs, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, model in result["models"].items():
        for variant, found in model["variants"].items():
            exact, substring = (found["metrics"][m] for m in ("strict_exact_match", "substring_match"))
            rows.append(
                {
                    "model": f"{name}, {LABELS.get(variant, variant)}",
                    "exact": f"{exact['mean']:.4f}",
                    "substring": f"{substring['mean']:.4f}",
                    "source": "this run" + (" (stand-in questions)" if inputs.stand_in else ""),
                    "ours": True,
                }
            )
    for kind, variant, exact, substring, source in published.EXACT_MATCH:
        rows.append(
            {
                "model": f"{published.KINDS[kind]}, {LABELS[variant]}",
                "exact": exact,
                "substring": substring or "not published here",
                "source": source,
                "ours": False,
            }
        )
    return rows


def _parameters(inputs: ReportInputs) -> tuple[list[str], list[tuple[str, str, list[str]]], list[str]]:
    """Names of the models that were trained, rows (label, published, one value a model), notes."""
    flat = {name: dict(flatten(values)) for name, values in inputs.parameters.items()}

    def mine(name: str, label: str) -> str:
        aliases = SETTINGS.get(label, ())
        return next((v for k, v in flat[name].items() if k.split(".")[-1] in aliases), "not recorded")

    rows = [(label, theirs, [mine(n, label) for n in flat]) for label, theirs in published.HYPERPARAMETERS.items()]
    rows[-1] = (*rows[-1][:2], [_batch(values) for values in flat.values()])
    for key, label in (("total", "parameters"), ("trainable", "trainable parameters")):
        theirs = "; ".join(
            f"{published.KINDS[kind]} {found[key] or 'not published here'}"
            for kind, found in published.PARAMETERS.items()
        )
        rows.append((label, theirs, [_count(values, key) for values in flat.values()]))
    notes = [f"{published.KINDS[kind]}: {found['note']}." for kind, found in published.PARAMETERS.items()]
    return list(flat), rows, notes


def _batch(values: Mapping[str, str]) -> str:
    last = {key.split(".")[-1]: value for key, value in values.items()}
    size = last.get("per_device_train_batch_size") or last.get("batch_size")
    steps = last.get("gradient_accumulation_steps") or last.get("accumulation") or last.get("gradient_accumulation")
    return f"{size} × {steps}" if size and steps else size or "not recorded"


def _count(values: Mapping[str, str], key: str) -> str:
    names = {key, f"{key}_parameters", f"parameters_{key}"}
    found = next((v for k, v in values.items() if k.split(".")[-1] in names), "not recorded")
    return f"{int(found):,}" if found.isdigit() else found


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"a": {"b": 1}}`` as ``("a.b", "1")``; lists of plain values in one line."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, (list, tuple)) and any(isinstance(x, (Mapping, list)) for x in tree):
        for i, value in enumerate(tree):
            yield from flatten(value, f"{prefix}.{i}")
    else:
        yield prefix, _plain(tree)


def _plain(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _finite(value: Any) -> Any:
    """Values for JSON: not-a-number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
