"""The report holds every figure, labels its gaps, and lets nothing from data become markup."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_prep.curate.blind_floor import blind_floor
from data_prep.reasons import REASONS
from data_prep.records import Answered, Example
from tests.conftest import ROOT
from tests.vqa.evaluation.rows import examples, predictions, write_images
from vqa.evaluation.bertscore import BertSettings
from vqa.report.browser import script_json
from vqa.report.build import build
from vqa.report.charts import line_chart, ticks, training_charts
from vqa.report.dataset import bar_charts, funnel
from vqa.report.inputs import ReportInputs, StageSummary
from vqa.report.settings import ReportSettings

EVIL = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">\'{{ 7*7 }}\u2028'


class Elements(HTMLParser):
    """Which elements and attributes a page really has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def full(root: Path) -> ReportInputs:
    rows, trained = examples(30), examples(50, seed=9)
    write_images(root, rows)
    return ReportInputs(
        run={"launches": [{"commit": "0123456789abcdef"}]},
        stages=[StageSummary("generate", {"ok": 30}, 12.5, {"blocked": 2}, 1000, 200, 0.25)],
        stats={"splits": {"train": {"questions": 250}}},
        train=trained,
        test=rows,
        predictions={"blip": {"base": predictions(rows, 0.2), "lora": predictions(rows, 0.8, seed=2)}},
        parameters={"blip": {"lora": {"r": 16}, "trainable": 2359296}},
        training_log={"blip": [{"step": i, "loss": 1 / (i + 1), "val_loss": 1.0} for i in range(5)]},
        image_root=root,
    )


def test_report_json_holds_the_headline_and_its_uncertainty(tmp_path: Path) -> None:
    build(full(tmp_path / "images"), tmp_path / "8_report")
    found = json.loads((tmp_path / "8_report/report.json").read_text())["models"]["blip"]
    assert found["paired"]["difference"]["low"] > 0.3
    assert found["paired"]["mcnemar"]["p"] < 1e-4
    assert found["variants"]["lora"]["metrics"]["exact_match"]["mean"] > 0.7
    assert found["blind"]["questions"] == found["questions"] == 150
    assert {"category", "question type", "product type", "answer frequency"} == set(found["breakdowns"])


def test_one_product_is_no_evidence(tmp_path: Path) -> None:
    rows = examples(1)
    answers = {"blip": {"base": predictions(rows, 0.0), "lora": predictions(rows, 1.0)}}
    build(ReportInputs(test=rows, predictions=answers), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "Only 1 product." in page and "learned 0 of 3 question types; it cannot be judged on" in page
    assert "no interval" in page and not re.search(r"\bnan\b", page)


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    build(full(tmp_path / "images"), tmp_path / "8_report")
    for tag, attributes in Elements((tmp_path / "8_report/index.html").read_text()).tags:
        for name in ("src", "srcset", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert tag != "link" or attributes["href"] == "data:,"


def test_nothing_at_all_still_gives_a_page_with_labeled_gaps(tmp_path: Path) -> None:
    build(ReportInputs(), tmp_path)
    page = (tmp_path / "index.html").read_text()
    for gap in (
        "No answers yet",
        "No training log yet",
        "No sample sheet",
        "run.json is missing",
        "curate has not run",
    ):
        assert gap in page


def test_a_missing_adapter_log_and_bertscore_are_named_on_the_first_page(tmp_path: Path) -> None:
    rows = examples(4)
    inputs = ReportInputs(
        test=rows,
        predictions={"blip": {"base": predictions(rows, 0.5)}, "vilt": {}},
        training_log={"blip": []},
        bert=BertSettings("/no/such/model"),
    )
    warnings = build(inputs, tmp_path).warnings
    page = (tmp_path / "index.html").read_text()
    for part in ("no fine-tuned answers", "/no/such/model", "vilt: no answers yet"):
        assert any(part in warning for warning in warnings)
        assert part in page[: page.index("What fine-tuning changed")]


def test_questions_that_one_variant_did_not_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = examples(4)
    answers = {"blip": {"base": predictions(rows, 0.5), "lora": predictions(rows[:15], 0.5), "other": []}}
    found = build(ReportInputs(test=rows, predictions=answers), tmp_path)
    assert (found.models["blip"].questions, found.models["blip"].unshared) == (15, 5)
    assert "blip: 5 questions were not answered by every variant and are left out." in found.warnings


def test_the_blind_floor_is_the_one_of_the_dataset_card(tmp_path: Path) -> None:
    # The same words say red, the first words of all questions say blue: a guesser with one level gets the mugs wrong.
    mugs, lamps = (
        [
            dataclasses.replace(e, question=f"What color is the {thing}?", question_type="color", answer=answer)
            for e in examples(products, questions=1)
        ]
        for thing, answer, products in (("mug", "red", 4), ("lamp", "blue", 9))
    )
    train, test = (
        [*mugs, *lamps],
        [*mugs[:2], *lamps[:2], dataclasses.replace(lamps[3], question="What color is the sofa?")],
    )
    ids = [dataclasses.replace(e, id=str(i), item_id=str(i)) for i, e in enumerate(test)]
    found = build(ReportInputs(train=train, test=ids, predictions={"m": {"base": predictions(ids, 0.5)}}), tmp_path)
    assert found.models["m"].blind.mean == blind_floor(train, ids).exact_match == 1.0


def test_stand_in_failures_and_caps_are_said_before_any_figure(tmp_path: Path) -> None:
    inputs = ReportInputs(
        stand_in=True, warnings=["capped at 5 products"], failed={"blip-lora": {"image_file_missing": 3}}
    )
    build(inputs, tmp_path)
    page = (tmp_path / "index.html").read_text()
    first = page[: page.index("What fine-tuning changed")]
    assert all(
        part in first
        for part in ("stand-in", "capped at 5 products", "3 questions have no answer: the image file is missing (3)")
    )


def test_published_figures_are_called_not_comparable_and_never_invented(tmp_path: Path) -> None:
    build(full(tmp_path / "images"), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert all(part in page for part in ("0.6928", "None is comparable", "not published", "2,359,296"))


def test_data_cannot_become_markup_or_script(tmp_path: Path) -> None:
    row = Example("1", EVIL, EVIL, "../../etc/passwd", EVIL, EVIL, EVIL, EVIL, EVIL)
    found = [Answered("1", EVIL, EVIL, EVIL, EVIL, text) for text in (EVIL + "x", EVIL)]
    inputs = ReportInputs(
        run={EVIL: EVIL},
        stages=[StageSummary(EVIL, {EVIL: 1}, reasons={EVIL: 1})],
        stats={EVIL: {EVIL: [EVIL]}},
        train=[row],
        test=[row],
        predictions={EVIL: {"base": found[:1], "lora": found[1:]}},
        failed={EVIL: {EVIL: 1}},
        parameters={EVIL: {"r": EVIL}},
        training_log={EVIL: [{"step": 1, "loss": 1, "val_loss": 2, "val_exact_match": 1}]},
        image_root=tmp_path,
        warnings=[EVIL],
        settings=ReportSettings(title=EVIL),
    )
    build(inputs, tmp_path / "evil")
    page = (tmp_path / "evil/index.html").read_text()
    tags = Elements(page).tags
    scripts = [attributes for tag, attributes in tags if tag == "script"]
    assert len(scripts) == 2
    assert not [a for _, attributes in tags for a in attributes if a.startswith("on")]
    assert not [1 for tag, attributes in tags if tag == "img" and attributes.get("src") == "x"]
    assert "{{ 7*7 }}" in page
    assert "passwd" not in page.replace(script_json("../../etc/passwd"), "")


def test_script_data_survives_its_escaping() -> None:
    assert json.loads(script_json({"a": EVIL})) == {"a": EVIL}
    assert not set("<>&\u2028") & set(script_json(EVIL))


def test_images_outside_of_the_image_folder_are_never_embedded(tmp_path: Path) -> None:
    write_images(tmp_path, [Example("1", "p", "i", "secret.jpg", "q", "red", "", "", "")])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link.jpg").symlink_to(tmp_path / "secret.jpg")
    rows = [
        Example(str(i), "p", "i", path, "q", "red", "", "", "") for i, path in enumerate(("../secret.jpg", "link.jpg"))
    ]
    inputs = ReportInputs(
        test=rows, predictions={"m": {"base": predictions(rows, 1.0)}}, image_root=tmp_path / "images"
    )
    build(inputs, tmp_path / "out")
    assert "data:image/jpeg" not in (tmp_path / "out/index.html").read_text()


def test_the_number_of_embedded_images_is_bounded(tmp_path: Path) -> None:
    inputs = full(tmp_path / "images")
    few = ReportInputs(
        test=inputs.test,
        predictions=inputs.predictions,
        image_root=inputs.image_root,
        settings=ReportSettings(thumbnails=3, examples=0),
    )
    build(few, tmp_path)
    page = (tmp_path / "index.html").read_text()
    data = page[page.index('id="data">') :]
    assert data.count("data:image/jpeg") == 3


def test_figures_do_not_depend_on_the_order_of_answers(tmp_path: Path) -> None:
    inputs = full(tmp_path / "images")
    other = {m: {v: list(reversed(p)) for v, p in variants.items()} for m, variants in inputs.predictions.items()}
    again = ReportInputs(train=inputs.train, test=inputs.test[::-1], predictions=other)
    assert build(inputs, tmp_path / "a").models == build(again, tmp_path / "b").models


def test_axes_have_round_numbers() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(3, 3) == [3]


def test_curves_pass_over_what_is_not_a_number() -> None:
    assert line_chart("Loss", [("training", [(0, 1.0), (1, float("nan"))])]) is None
    (loss,) = training_charts(
        [{"step": 0, "loss": 2}, {"step": 1, "loss": float("inf")}, {"loss": 3}, {"step": 2, "loss": 1}]
    )
    assert loss.curves[0].last == 1.0


@pytest.mark.parametrize("theme", ["dark", "light", "print"])
def test_the_page_has_a_style_for(theme: str, tmp_path: Path) -> None:
    build(ReportInputs(), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert {"dark": "prefers-color-scheme:dark", "light": ":root{color-scheme:light dark", "print": "@media print"}[
        theme
    ] in page


def test_report_json_has_the_verdict_under_names_that_docs_promise(tmp_path: Path) -> None:
    inputs = full(tmp_path / "images")
    lora = inputs.predictions["blip"]["lora"]
    wrong = [dataclasses.replace(p, answer="nonsense") for p in lora[:100]]
    build(dataclasses.replace(inputs, controls={"blip": {"swap": wrong, "grey": wrong}}), tmp_path)
    model = json.loads((tmp_path / "report.json").read_text())["models"]["blip"]
    verdict = model["verdict"]
    assert set(verdict["by_question_type"]) == {"color", "shape", "count"}
    for found in [verdict["overall"], *verdict["by_question_type"].values()]:
        assert {"base", "lora", "blind", "control", "verdict", "collapsed"} <= found.keys()
        assert found["verdict"] == "learned" and found["collapsed"] is False
        assert found["control"]["swap"]["gain"]["difference"]["mean"] > 0.5
        assert found["lora"]["mean"] > found["base"]["mean"]
    assert verdict["overall"]["control"]["grey"]["own"]["questions"] == 100
    assert verdict["overall"]["lora"] == model["variants"]["lora"]["metrics"]["exact_match"]
    assert verdict["overall"]["blind"] == model["blind"]
    documented = (ROOT / "docs/verdict.md").read_text()
    assert all(f"`{key}`" in documented for key in verdict["overall"])


def test_two_models_are_compared_on_the_questions_that_both_answered(tmp_path: Path) -> None:
    rows = examples(40)
    weak, strong = predictions(rows, 0.2, seed=3), predictions(rows[:150], 0.9, seed=4)
    found = build(ReportInputs(test=rows, predictions={"blip": {"lora": weak}, "vilt": {"lora": strong}}), tmp_path)
    (comparison,) = found.comparisons
    assert (comparison.variant, comparison.names, comparison.shared) == ("lora", ("blip", "vilt"), 150)
    assert comparison.paired.difference.low is not None and comparison.paired.difference.low > 0.3
    page = (tmp_path / "index.html").read_text()
    assert "vilt is better" in page and page.index("Models compared") < page.index("<h2>Metrics")
    build(ReportInputs(test=rows, predictions={"blip": {"lora": weak}}), tmp_path)
    assert "Models compared" not in (tmp_path / "index.html").read_text()


def test_no_counted_reason_stands_as_a_code_on_the_page(tmp_path: Path) -> None:
    reasons = dict.fromkeys(REASONS, 1)
    inputs = ReportInputs(stages=[StageSummary("prepare", {"listings": 9}, reasons=reasons)], failed={"blip": reasons})
    build(inputs, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert not [code for code in REASONS if "_" in code and code in re.sub(r"(prepare|validate)\.\w+", "", page)]


def test_a_column_that_no_stage_fills_is_left_out(tmp_path: Path) -> None:
    stages = [StageSummary("prepare", {"listings": 9}, 1.0), StageSummary("generate", {"done": 9}, 7200.0)]
    build(ReportInputs(stages=stages), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "2.0 h" in page
    assert not [column for column in ("Tokens in", ">Cost<", "Rejected or failed") if column in page]
    paid = dataclasses.replace(stages[1], reasons={"blocked": 1}, input_tokens=5, output_tokens=2, dollars=0.25)
    build(ReportInputs(stages=[stages[0], paid]), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert all(part in page for part in ("5 / 2", "$0.25", "the generator blocked the request or its reply (1)"))


def test_the_funnel_adds_up_and_says_what_was_lost_once() -> None:
    failed = {"image_truncated": 3}
    stages = [
        StageSummary("prepare", {"listings": 20, "products": 15}, reasons={"no_keywords_field": 5}),
        StageSummary("validate", {"items": 15, "done": 12, "failed": 3}, reasons=failed),
    ]
    stats = {
        "products": {"read": 15, "kept": 10, "dropped": {**failed, "no_reply": 2}},
        "pairs": {"read": 50, "kept": 40, "dropped": {"not_one_word": 10}},
        "splits": {"train": {"questions": 30}, "test": {"questions": 10}},
    }
    steps = funnel(stats, stages)
    assert [(s.count, s.lost) for s in steps] == [(20, 0), (15, 5), (12, 3), (10, 2), (50, 0), (40, 10), (40, 0)]
    assert [s.reasons for s in steps][1:4] == [
        "no keywords (5)",
        "the image file is cut off (3)",
        "no reply for the product (2)",
    ]
    assert steps[3].width == 50 and steps[5].width == 80
    assert [chart.title for chart in bar_charts(stats)] == ["Splits"]


def test_without_a_control_the_page_never_says_learned(tmp_path: Path) -> None:
    inputs = full(tmp_path / "images")
    found = build(inputs, tmp_path).models["blip"].verdict
    page = (tmp_path / "index.html").read_text()
    assert found is not None and found.overall.verdict == "cannot be told"
    assert "learned 0 of 3 question types" in page and "No control" in page


def test_a_collapse_stands_in_the_notices_the_headline_and_beside_its_type(tmp_path: Path) -> None:
    rows = examples(60)
    lora = [dataclasses.replace(p, answer="three") for p in predictions(rows, 0.5)]
    inputs = ReportInputs(test=rows, train=rows, predictions={"blip": {"base": predictions(rows, 0.0), "lora": lora}})
    found = build(inputs, tmp_path)
    page = (tmp_path / "index.html").read_text()
    alarm = 'color (120 of 120 answers are "three")'
    assert any(alarm in warning for warning in found.warnings)
    assert "gives collapsed answers on color, shape and count" in page
    assert page.count("Collapsed: ") == 3
    again = build(dataclasses.replace(inputs, warnings=found.warnings), tmp_path)
    assert again.warnings == found.warnings, "what the stage evaluate said already is not said twice"


def test_a_gain_that_stays_below_guessing_is_not_praised(tmp_path: Path) -> None:
    rows = [dataclasses.replace(e, question=f"What is property {e.id[-1]}?", answer="red") for e in examples(40)]
    answers = {"blip": {"base": predictions(rows, 0.0), "lora": predictions(rows, 0.5)}}
    build(ReportInputs(test=rows, train=rows, predictions=answers), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert (
        "Fine-tuned blip learned 0 of 3 question types; it is no better than guessing on color, shape and count" in page
    )
